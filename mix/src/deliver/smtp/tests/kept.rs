//! Several mails by one connection, and servers that do not go along with it.

use super::super::kept::{IDLE, MAILS};
use super::*;

const MAIL: &str = "Subject: x\r\n\r\nx\r\n";

fn nobody() -> Mailbox {
    Mailbox::parse("nobody@exit.example").unwrap()
}

fn exit_to(config: &SmtpExitConfig) -> SmtpExit {
    SmtpExit::new(config, &nobody()).unwrap()
}

/// A mail by the exit's own way, with what its server was told before it got none.
async fn mail_by(exit: &SmtpExit, to: &str) -> Result<Result<(), DeliverError>, NotAsked> {
    let conversation = exit.offer(&nobody(), &Mailbox::parse(to).unwrap()).await?;
    Ok(conversation.hand_over(MAIL.as_bytes()).await)
}

async fn takes(exit: &SmtpExit, to: &str) {
    assert_eq!(mail_by(exit, to).await, Ok(Ok(())), "{to}");
}

/// How often a server was called.
fn calls(said: &[String]) -> usize {
    said.iter().filter(|line| line.starts_with("EHLO")).count()
}

fn mails(said: &[String]) -> usize {
    said.iter().filter(|line| line.starts_with("Subject")).count()
}

/// What a server hears of two mails if it behaves so from the second mail of a connection on.
async fn second_mail_at(later: Manners) -> Vec<String> {
    let (port, mut hears) = server(Manners { later: Some((1, Box::new(later))), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    takes(&exit, "first@example.org").await;
    takes(&exit, "second@example.org").await;
    all(&mut hears)
}

#[tokio::test]
async fn mails_go_by_one_connection_and_the_close_says_good_bye() {
    let (port, mut hears) = server(Manners::default()).await;
    let exit = exit_to(&config(port));
    for to in ["a@example.org", "b@example.org", "c@example.org"] {
        takes(&exit, to).await;
    }
    exit.close().await;
    let one = |to: &str| {
        [format!("MAIL FROM:<{}>", nobody().as_str()), format!("RCPT TO:<{to}@example.org>"), "DATA".into()]
            .into_iter()
            .chain([format!("{MAIL}.\r\n")])
    };
    let expected: Vec<_> = ["EHLO exit.example".to_owned()]
        .into_iter()
        .chain(["a", "b", "c"].into_iter().flat_map(one))
        .chain(["QUIT".to_owned()])
        .collect();
    assert_eq!(all(&mut hears), expected);
    takes(&exit, "d@example.org").await;
    let said = all(&mut hears);
    assert_eq!((calls(&said), said.last().map(String::as_str)), (1, Some("QUIT")), "no more are kept: {said:?}");
}

#[tokio::test]
async fn login_and_tls_are_those_of_the_connection_and_said_once() {
    let (pem, acceptor) = authority("127.0.0.1");
    let (_folder, path) = file(pem);
    let manners = Manners { offers_tls: true, tls: Some(acceptor), logins: Some("PLAIN"), ..Manners::default() };
    let (port, mut hears) = server(manners).await;
    let config = SmtpExitConfig { tls: SmtpTls::Required, ca_file: Some(path), ..with_login(config(port)) };
    let exit = exit_to(&config);
    takes(&exit, "a@example.org").await;
    takes(&exit, "b@example.org").await;
    let said = all(&mut hears);
    assert_eq!(said.iter().filter(|line| line.contains("AUTH")).count(), 1, "{said:?}");
    assert_eq!(said.iter().filter(|line| line.starts_with("+RCPT")).count(), 2, "{said:?}");
}

#[tokio::test]
async fn mails_at_a_time_have_a_connection_each_and_all_are_kept() {
    let (port, mut hears) = server(Manners::default()).await;
    let exit = exit_to(&config(port));
    for _ in 0..2 {
        tokio::join!(takes(&exit, "a@example.org"), takes(&exit, "b@example.org"));
    }
    assert_eq!(calls(&all(&mut hears)), 2);
}

#[tokio::test]
async fn server_that_ends_a_kept_connection_in_any_way_loses_nothing_and_costs_no_try() {
    let says = |to, answer| Manners { refuse: Some((to, answer)), ..Manners::default() };
    let hangs_up = |at| Manners { hangs_up_at: Some(at), ..Manners::default() };
    for (later, what) in [
        (hangs_up("MAIL"), "gone"),
        (hangs_up("RCPT"), "gone at the recipient"),
        (hangs_up("DATA"), "gone at the mail"),
        (says("MAIL", "421 too many mails"), "closing"),
        (says("RCPT", "421 too many mails"), "closing at the recipient"),
        (says("DATA", "421 too many mails"), "closing at the mail"),
        (says("MAIL", "452 enough for one session"), "enough"),
        (says("MAIL", "503 sender already specified"), "confused"),
        (says("RCPT", "452 enough for one session"), "enough recipients"),
    ] {
        let said = second_mail_at(later).await;
        assert_eq!((calls(&said), mails(&said)), (2, 2), "{what}: {said:?}");
        let ends = said.iter().skip_while(|line| !line.starts_with("Subject")).skip(1);
        let second = ends.filter(|line| line.starts_with("MAIL")).count();
        assert_eq!(second, 2, "{what}: once by each connection: {said:?}");
    }
}

#[tokio::test]
async fn server_that_hangs_up_after_a_mail_is_called_anew_for_the_next() {
    let (port, mut hears) = server(Manners { hangs_up_at: Some("mail"), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    // It is gone before its answer: the mail may be there or not, and that is so for each by itself.
    for _ in 0..2 {
        let lost = mail_by(&exit, "a@example.org").await;
        assert!(matches!(lost, Ok(Err(DeliverError::Unavailable(_)))), "{lost:?}");
    }
    assert_eq!(calls(&all(&mut hears)), 2, "what has not taken a mail is not kept");
}

#[tokio::test]
async fn mail_that_a_kept_connection_has_been_given_and_is_not_answered_is_not_given_again() {
    let later = Manners { hangs_up_at: Some("mail"), ..Manners::default() };
    let (port, mut hears) = server(Manners { later: Some((1, Box::new(later))), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    takes(&exit, "first@example.org").await;
    let lost = mail_by(&exit, "second@example.org").await;
    assert!(matches!(lost, Ok(Err(DeliverError::Unavailable(_)))), "{lost:?}");
    let said = all(&mut hears);
    assert_eq!((calls(&said), mails(&said)), (1, 2), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn kept_connection_that_hangs_takes_little_of_the_next_mails_time() {
    let began = Instant::now();
    let said = second_mail_at(Manners { hang_at: Some("MAIL"), ..Manners::default() }).await;
    assert_eq!((calls(&said), mails(&said)), (2, 2), "{said:?}");
    assert!(began.elapsed() < 2 * STILL_THERE, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn recipient_who_is_slow_by_a_kept_connection_has_the_time_of_one_delivery_and_is_no_fault_of_the_server() {
    let later = Manners { hang_at: Some("RCPT"), ..Manners::default() };
    let (port, mut hears) = server(Manners { later: Some((1, Box::new(later))), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    takes(&exit, "first@example.org").await;
    let began = Instant::now();
    let slow = mail_by(&exit, "slow@example.org").await;
    assert_eq!(slow, Err(NotAsked::Recipient(DeliverError::Unavailable(Trouble::TimedOut))));
    assert!(began.elapsed() <= config(port).timeout + QUIT_TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(calls(&all(&mut hears)), 1);
}

#[tokio::test]
async fn recipient_who_is_refused_for_good_is_so_by_a_kept_connection_which_ends() {
    let later = Manners { refuse: Some(("RCPT", "550 who?")), ..Manners::default() };
    let (port, mut hears) = server(Manners { later: Some((1, Box::new(later))), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    takes(&exit, "first@example.org").await;
    let refused = mail_by(&exit, "who@example.org").await;
    assert_eq!(refused, Err(NotAsked::Recipient(DeliverError::Permanent { code: 550 })));
    let said = all(&mut hears);
    assert_eq!((calls(&said), said.last().map(String::as_str)), (1, Some("QUIT")), "{said:?}");
    takes(&exit, "next@example.org").await;
    assert_eq!(calls(&all(&mut hears)), 1, "a new one");
}

#[tokio::test]
async fn what_fails_by_a_new_connection_is_told_from_what_fails_with_the_recipient() {
    for (at, expected) in [
        ("MAIL", NotAsked::Before(DeliverError::Transient { code: 451 })),
        ("RCPT", NotAsked::Recipient(DeliverError::Transient { code: 451 })),
        ("DATA", NotAsked::Recipient(DeliverError::Transient { code: 451 })),
    ] {
        let (port, mut hears) = server(Manners { refuse: Some((at, "451 not now")), ..Manners::default() }).await;
        assert_eq!(mail_by(&exit_to(&config(port)), "a@example.org").await, Err(expected), "{at}");
        assert_eq!(calls(&all(&mut hears)), 1, "{at}");
    }
}

#[tokio::test]
async fn connection_ends_after_its_last_mail() {
    let (port, mut hears) = server(Manners::default()).await;
    let exit = exit_to(&config(port));
    for _ in 0..=MAILS {
        takes(&exit, "a@example.org").await;
    }
    let said = all(&mut hears);
    assert_eq!((calls(&said), mails(&said)), (2, usize::try_from(MAILS).unwrap() + 1));
    let last = said.iter().position(|line| line == "QUIT").unwrap();
    assert_eq!(mails(&said[..last]), usize::try_from(MAILS).unwrap());
}

#[tokio::test(start_paused = true)]
async fn connection_that_waits_in_vain_ends_though_nobody_comes_and_the_way_is_gone() {
    let (port, mut hears) = server(Manners::default()).await;
    let exit = exit_to(&config(port));
    takes(&exit, "a@example.org").await;
    // As after a reload that names another server.
    drop(exit);
    let began = Instant::now();
    while hears.recv().await.expect("a good-bye") != "QUIT" {}
    let waited = began.elapsed();
    assert!(waited >= IDLE / 2 && waited < 2 * IDLE, "{waited:?}");
}

#[tokio::test]
async fn answer_that_belongs_to_another_command_is_not_taken_for_a_yes() {
    for (at, answer) in
        [("MAIL", "354 go on"), ("RCPT", "354 go on"), ("DATA", "250 ok"), ("DATA", "220 hello"), ("mail", "354 go on")]
    {
        let outcome = deliver_to(Manners { refuse: Some((at, answer)), ..Manners::default() }).await;
        assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::Protocol)), "{at}: {answer}");
    }
}

#[tokio::test]
async fn server_that_answers_once_too_often_gets_no_mail_by_that_connection() {
    // The answer to the first mail is two, and the second is taken for that to the next command, and so on.
    let (port, mut hears) = server(Manners { refuse: Some(("mail", "250 ok\r\n250 ok")), ..Manners::default() }).await;
    let exit = exit_to(&config(port));
    takes(&exit, "first@example.org").await;
    takes(&exit, "second@example.org").await;
    let said = all(&mut hears);
    assert_eq!((calls(&said), mails(&said)), (2, 2), "{said:?}");
}
