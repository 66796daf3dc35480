use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// How the server of a test behaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// Answers this instead of the usual to the first command that begins so.
    refuse: Option<(&'static str, &'static str)>,
    /// Never answers a command that begins so.
    hang_at: Option<&'static str>,
    /// Offers STARTTLS in its answer to EHLO.
    offers_tls: bool,
}

/// A mail server of one connection after the other; sends on what it heard, the mail as one entry.
async fn server(manners: Manners) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = converse(stream, manners, &heard).await;
        }
    });
    (port, hears)
}

async fn converse(stream: TcpStream, manners: Manners, heard: &mpsc::UnboundedSender<String>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut command = "greeting".to_owned();
    loop {
        if manners.hang_at.is_some_and(|it| command.starts_with(it)) {
            std::future::pending::<()>().await;
        }
        let refusal = manners.refuse.filter(|(it, _)| command.starts_with(it)).map(|(_, answer)| answer);
        let answer = match command.split_ascii_whitespace().next().unwrap_or_default() {
            _ if refusal.is_some() => refusal.unwrap(),
            "greeting" => "220 hello",
            "EHLO" if manners.offers_tls => "250-hello\r\n250 STARTTLS",
            "DATA" => "354 go on",
            "STARTTLS" => "220 go on",
            "QUIT" => "221 bye",
            _ => "250 ok",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        if answer.starts_with("354") {
            let mut mail = String::new();
            while !mail.ends_with("\r\n.\r\n") {
                if stream.read_line(&mut mail).await? == 0 {
                    return Ok(());
                }
            }
            heard.send(mail).unwrap();
            command = "mail".to_owned();
            continue;
        }
        command.clear();
        if stream.read_line(&mut command).await? == 0 {
            return Ok(());
        }
        heard.send(command.trim_end().to_owned()).unwrap();
    }
}

fn config(port: u16) -> SmtpExitConfig {
    SmtpExitConfig { port, ..SmtpExitConfig::default() }
}

async fn deliver_by(config: SmtpExitConfig, mail: &str) -> Result<(), DeliverError> {
    let from = Mailbox::parse("nobody@exit.example").unwrap();
    let to = Mailbox::parse("bob@example.org").unwrap();
    let mut conversation = SmtpExit::new(&config, &from).unwrap().call(&from).await?;
    conversation.offer(&to).await?;
    conversation.hand_over(mail.as_bytes()).await
}

async fn deliver_to(manners: Manners) -> Result<(), DeliverError> {
    let (port, _hears) = server(manners).await;
    deliver_by(config(port), "Subject: x\r\n\r\nx\r\n").await
}

#[tokio::test]
async fn mail_arrives_as_it_was_with_its_dots_and_long_lines() {
    let (port, mut hears) = server(Manners::default()).await;
    let mail = format!("Subject: x\r\n\r\n.\r\n..two\r\nFrom me\r\n{}\r\nend\r\n", "y".repeat(998));
    deliver_by(config(port), &mail).await.unwrap();
    let mut said = Vec::new();
    while let Ok(line) = hears.try_recv() {
        said.push(line);
    }
    assert_eq!(said.first().unwrap(), "EHLO exit.example");
    assert!(said.iter().any(|line| line == "MAIL FROM:<nobody@exit.example>"), "{said:?}");
    assert!(said.iter().any(|line| line == "RCPT TO:<bob@example.org>"), "{said:?}");
    let arrived = said.iter().find(|line| line.starts_with("Subject")).unwrap();
    let unstuffed: Vec<&str> = arrived.split("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect();
    assert_eq!(unstuffed.join("\r\n"), mail + "\r\n");
}

#[tokio::test]
async fn greeting_is_the_name_of_the_settings_and_never_another() {
    let (port, mut hears) = server(Manners::default()).await;
    deliver_by(SmtpExitConfig { hello: Some("mx.example".into()), ..config(port) }, "\r\n").await.unwrap();
    assert_eq!(hears.recv().await.unwrap(), "EHLO mx.example");
    let from = Mailbox::parse("nobody@exit.example").unwrap();
    let wrong = SmtpExitConfig { hello: Some("a b".into()), ..config(port) };
    assert!(matches!(SmtpExit::new(&wrong, &from), Err(InvalidSmtpExit::Hello)));
}

#[tokio::test]
async fn refusal_is_told_from_refusal_for_now() {
    for (command, answer, expected) in [
        ("RCPT", "550 <bob@example.org>: no such user", DeliverError::Permanent { code: 550 }),
        ("MAIL", "553 not you", DeliverError::Permanent { code: 553 }),
        ("RCPT", "450 greylisted", DeliverError::Transient { code: 450 }),
        ("mail", "554 spam", DeliverError::Permanent { code: 554 }),
        ("mail", "452 full", DeliverError::Transient { code: 452 }),
        ("DATA", "421 closing", DeliverError::Unavailable(Trouble::TurnedAway { code: 421 })),
    ] {
        let outcome = deliver_to(Manners { refuse: Some((command, answer)), ..Manners::default() }).await;
        assert_eq!(outcome, Err(expected), "{command}");
        assert!(!outcome.unwrap_err().to_string().contains("bob"));
    }
}

#[tokio::test]
async fn refusal_of_our_greeting_is_no_refusal_of_the_mail() {
    let expected = Err(DeliverError::Unavailable(Trouble::TurnedAway { code: 554 }));
    for command in ["greeting", "EHLO"] {
        let outcome = deliver_to(Manners { refuse: Some((command, "554 go away")), ..Manners::default() }).await;
        assert_eq!(outcome, expected, "{command}");
    }
}

#[tokio::test]
async fn server_that_is_not_there_or_speaks_nonsense_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let outcome = deliver_by(config(port), "\r\n").await;
    assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::Connection)));
    let outcome = deliver_to(Manners { refuse: Some(("greeting", "hello there")), ..Manners::default() }).await;
    assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::Protocol)));
}

#[tokio::test]
async fn server_that_hangs_runs_into_the_timeout() {
    for command in ["greeting", "RCPT", "mail"] {
        let (port, _hears) = server(Manners { hang_at: Some(command), ..Manners::default() }).await;
        let config = SmtpExitConfig { timeout: Duration::from_millis(200), ..config(port) };
        let outcome = deliver_by(config, "\r\n").await;
        assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::TimedOut)), "{command}");
    }
}

#[tokio::test]
async fn mail_that_was_taken_is_delivered_however_the_good_bye_goes() {
    assert_eq!(deliver_to(Manners { refuse: Some(("QUIT", "500 what?")), ..Manners::default() }).await, Ok(()));
}

#[tokio::test]
async fn tls_that_is_required_is_not_done_without() {
    let (port, mut hears) = server(Manners::default()).await;
    let outcome = deliver_by(SmtpExitConfig { tls: SmtpTls::Required, ..config(port) }, "\r\n").await;
    assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::Tls)));
    while let Ok(line) = hears.try_recv() {
        assert!(!line.starts_with("MAIL"), "{line}");
    }
}

#[tokio::test]
async fn opportunistic_tls_that_is_not_offered_or_broken_is_done_without() {
    for offers_tls in [false, true] {
        let (port, _hears) = server(Manners { offers_tls, ..Manners::default() }).await;
        let config = SmtpExitConfig { tls: SmtpTls::Opportunistic, ..config(port) };
        assert_eq!(deliver_by(config, "\r\n").await, Ok(()), "{offers_tls}");
    }
}

#[test]
fn settings_are_read_as_an_operator_writes_them() {
    let json = r#"{"host": "mail", "port": 587, "tls": "required", "timeout": "90 seconds", "hello": null}"#;
    let config: SmtpExitConfig = serde_json::from_str(json).unwrap();
    assert_eq!((config.port, config.tls, config.timeout), (587, SmtpTls::Required, Duration::from_secs(90)));
    assert!(serde_json::from_str::<SmtpExitConfig>(r#"{"hots": "x"}"#).is_err());
    let defaults = serde_json::to_string(&SmtpExitConfig::default()).unwrap();
    assert_eq!(serde_json::from_str::<SmtpExitConfig>(&defaults).unwrap(), SmtpExitConfig::default());
}
