use std::fs;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

mod kept;

/// How the server of a test behaves.
#[derive(Clone, Default)]
pub(crate) struct Manners {
    /// Answers this instead of the usual to the first command that begins so.
    pub(crate) refuse: Option<(&'static str, &'static str)>,
    /// Never answers a command that begins so; at `handshake` it asks for TLS and says nothing more.
    pub(crate) hang_at: Option<&'static str>,
    /// Says its answer to a command that begins so octet by octet, one a minute.
    pub(crate) drips_at: Option<&'static str>,
    /// Offers STARTTLS in its answer to EHLO.
    pub(crate) offers_tls: bool,
    /// Speaks TLS after STARTTLS; without one it goes on in the clear.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Speaks TLS from the first octet on.
    pub(crate) implicit: bool,
    /// The ways to log in that it offers.
    pub(crate) logins: Option<&'static str>,
    /// Hangs up instead of an answer to a command that begins so.
    pub(crate) hangs_up_at: Option<&'static str>,
    /// How it behaves once a connection has brought it so many mails.
    pub(crate) later: Option<(usize, Box<Manners>)>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A mail server; sends on what it heard, the mail as one entry, and before what came within TLS a `+`.
async fn server(manners: Manners) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap().port(), server_on(listener, manners))
}

/// As [`server`], at an address that is open already.
pub(crate) fn server_on(listener: TcpListener, manners: Manners) -> mpsc::UnboundedReceiver<String> {
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (manners, heard) = (manners.clone(), heard.clone());
            tokio::spawn(async move { converse(stream, &manners, &heard).await });
        }
    });
    hears
}

async fn converse(stream: TcpStream, mut manners: &Manners, heard: &mpsc::UnboundedSender<String>) -> io::Result<()> {
    let mut mails = 0;
    let mut stream: BufReader<Box<dyn Stream>> = BufReader::new(Box::new(stream));
    if let Some(tls) = manners.tls.as_ref().filter(|_| manners.implicit) {
        stream = BufReader::new(Box::new(tls.accept(stream.into_inner()).await?));
    }
    let mut mark = if manners.implicit { "+" } else { "" };
    let mut command = "greeting".to_owned();
    let mut challenges = ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 welcome"].into_iter();
    let mut in_login = false;
    loop {
        if manners.hangs_up_at.is_some_and(|it| command.starts_with(it)) {
            return Ok(());
        }
        if manners.hang_at.is_some_and(|it| command.starts_with(it)) {
            std::future::pending::<()>().await;
        }
        let refusal = manners.refuse.filter(|(it, _)| command.starts_with(it)).map(|(_, answer)| answer);
        in_login |= command.starts_with("AUTH LOGIN");
        let answer = match command.split_ascii_whitespace().next().unwrap_or_default() {
            _ if refusal.is_some() => refusal.unwrap().to_owned(),
            _ if in_login => challenges.next().unwrap().to_owned(),
            "greeting" => "220 hello".to_owned(),
            "EHLO" => extensions(manners, !mark.is_empty()),
            "DATA" => "354 go on".to_owned(),
            "STARTTLS" => "220 go on".to_owned(),
            "AUTH" => "235 welcome".to_owned(),
            "QUIT" => "221 bye".to_owned(),
            _ => "250 ok".to_owned(),
        };
        let answer = answer + "\r\n";
        if manners.drips_at.is_some_and(|it| command.starts_with(it)) {
            for octet in answer.bytes() {
                tokio::time::sleep(Duration::from_secs(60)).await;
                stream.write_all(&[octet]).await?;
                stream.flush().await?;
            }
        } else {
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
        }
        in_login &= answer.starts_with("334");
        if answer.starts_with("354") {
            let mut mail = String::new();
            while !mail.ends_with("\r\n.\r\n") {
                if stream.read_line(&mut mail).await? == 0 {
                    return Ok(());
                }
            }
            heard.send(mail).unwrap();
            mails += 1;
            command = "mail".to_owned();
            continue;
        }
        if command.starts_with("STARTTLS") && manners.hang_at == Some("handshake") {
            std::future::pending::<()>().await;
        }
        if let Some(tls) = manners.tls.as_ref().filter(|_| command.starts_with("STARTTLS")) {
            stream = BufReader::new(Box::new(tls.accept(stream.into_inner()).await?));
            mark = "+";
        }
        if let Some((_, later)) = manners.later.as_ref().filter(|(after, _)| command == "mail" && mails == *after) {
            manners = later;
        }
        command.clear();
        if stream.read_line(&mut command).await? == 0 {
            return Ok(());
        }
        heard.send(format!("{mark}{}", command.trim_end())).unwrap();
    }
}

fn extensions(manners: &Manners, in_tls: bool) -> String {
    let mut lines = vec!["hello".to_owned()];
    lines.extend((manners.offers_tls && !in_tls).then(|| "STARTTLS".to_owned()));
    lines.extend(manners.logins.map(|ways| format!("AUTH {ways}")));
    let last = lines.len() - 1;
    let line = |(at, line): (usize, &String)| format!("250{}{line}", if at == last { ' ' } else { '-' });
    lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\r\n")
}

pub(crate) fn all(hears: &mut mpsc::UnboundedReceiver<String>) -> Vec<String> {
    std::iter::from_fn(|| hears.try_recv().ok()).collect()
}

/// A server's side of TLS with this certificate.
fn acceptor(certificate: &rcgen::Certificate, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// TLS of a server that vouches for itself, under this name.
pub(crate) fn self_signed(name: &str) -> TlsAcceptor {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    acceptor(&cert, &signing_key)
}

/// An authority of somebody's own, and the TLS of a server of this name that it vouches for.
pub(crate) fn authority(name: &str) -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    (pem, acceptor(&certificate, &key))
}

/// A file with this in it.
fn file(octets: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority.pem");
    fs::write(&path, octets).unwrap();
    (folder, path)
}

/// `config`, with a login.
fn with_login(config: SmtpExitConfig) -> SmtpExitConfig {
    SmtpExitConfig { user: Some("exit".into()), password: Some(Password::new("hunter2".into())), ..config }
}

fn refusal(config: &SmtpExitConfig) -> InvalidSmtpExit {
    match SmtpExit::new(config, &Mailbox::parse("nobody@exit.example").unwrap()) {
        Ok(_) => panic!("taken: {config:?}"),
        Err(why) => why,
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
    let said = all(&mut hears);
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

#[tokio::test(start_paused = true)]
async fn server_of_one_octet_a_minute_has_the_time_of_one_delivery_and_no_more() {
    for command in ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "mail"] {
        let (port, _hears) = server(Manners { drips_at: Some(command), ..Manners::default() }).await;
        let began = Instant::now();
        let outcome = deliver_by(config(port), "\r\n").await;
        assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::TimedOut)), "{command}");
        let (took, granted) = (began.elapsed(), config(port).timeout);
        assert!(took >= granted && took < granted + 2 * QUIT_TIMEOUT, "{command}: {took:?}");
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
    assert!(!all(&mut hears).iter().any(|line| line.starts_with("MAIL")));
}

#[tokio::test]
async fn opportunistic_tls_that_is_not_offered_or_broken_is_done_without() {
    for offers_tls in [false, true] {
        let (port, _hears) = server(Manners { offers_tls, ..Manners::default() }).await;
        let config = SmtpExitConfig { tls: SmtpTls::Opportunistic, ..config(port) };
        assert_eq!(deliver_by(config, "\r\n").await, Ok(()), "{offers_tls}");
    }
}

#[tokio::test(start_paused = true)]
async fn opportunistic_tls_whose_handshake_comes_to_no_end_is_done_without_and_required_tls_is_not() {
    let silent = || Manners { hang_at: Some("handshake"), offers_tls: true, ..Manners::default() };
    let (port, mut hears) = server(silent()).await;
    let (began, by) = (Instant::now(), SmtpExitConfig { tls: SmtpTls::Opportunistic, ..config(port) });
    assert_eq!(deliver_by(by, "Subject: x\r\n\r\nx\r\n").await, Ok(()));
    assert!(began.elapsed() < config(port).timeout, "{:?}", began.elapsed());
    assert!(all(&mut hears).iter().any(|said| said.starts_with("Subject: x")));
    let (port, mut hears) = server(silent()).await;
    let outcome = deliver_by(SmtpExitConfig { tls: SmtpTls::Required, ..config(port) }, "\r\n").await;
    assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::TimedOut)));
    assert!(!all(&mut hears).iter().any(|said| said.starts_with("MAIL")));
}

#[tokio::test]
async fn opportunistic_tls_takes_any_certificate_of_any_name() {
    for name in ["127.0.0.1", "another.example"] {
        let manners = Manners { offers_tls: true, tls: Some(self_signed(name)), ..Manners::default() };
        let (port, mut hears) = server(manners).await;
        let config = SmtpExitConfig { tls: SmtpTls::Opportunistic, ..config(port) };
        assert_eq!(deliver_by(config, "\r\n").await, Ok(()), "{name}");
        let said = all(&mut hears);
        assert!(said.iter().any(|line| line == "+RCPT TO:<bob@example.org>"), "{said:?}");
        assert!(!said.iter().any(|line| line.starts_with("MAIL")), "{said:?}");
    }
}

#[tokio::test]
async fn certificate_that_nobody_vouches_for_is_refused_where_it_must_be_good() {
    for tls in [SmtpTls::Required, SmtpTls::Implicit] {
        let implicit = tls == SmtpTls::Implicit;
        let manners = Manners { offers_tls: true, tls: Some(self_signed("127.0.0.1")), implicit, ..Manners::default() };
        let (port, mut hears) = server(manners).await;
        let config = SmtpExitConfig { tls, ..with_login(config(port)) };
        assert_eq!(deliver_by(config, "\r\n").await, Err(DeliverError::Unavailable(Trouble::Tls)), "{tls:?}");
        let said = all(&mut hears);
        assert!(!said.iter().any(|line| line.contains("AUTH") || line.contains("MAIL")), "{said:?}");
    }
}

#[tokio::test]
async fn certificate_of_an_authority_of_the_operators_own_is_good_for_its_name_alone() {
    for tls in [SmtpTls::Required, SmtpTls::Implicit] {
        for (name, expected) in
            [("127.0.0.1", Ok(())), ("another.example", Err(DeliverError::Unavailable(Trouble::Tls)))]
        {
            let (pem, acceptor) = authority(name);
            let (_folder, path) = file(pem);
            let implicit = tls == SmtpTls::Implicit;
            let manners = Manners { offers_tls: true, tls: Some(acceptor), implicit, ..Manners::default() };
            let (port, mut hears) = server(manners).await;
            let config = SmtpExitConfig { tls, ca_file: Some(path), ..config(port) };
            assert_eq!(deliver_by(config, "Subject: x\r\n\r\nx\r\n").await, expected, "{tls:?} {name}");
            let mailed = all(&mut hears).iter().any(|line| line == "+MAIL FROM:<nobody@exit.example>");
            assert_eq!(mailed, expected.is_ok(), "{tls:?} {name}");
        }
    }
}

#[tokio::test]
async fn certificate_is_for_the_name_of_the_server_wherever_it_is_called_at() {
    let from = Mailbox::parse("nobody@exit.example").unwrap();
    for (name, expected) in [("mx.example", None), ("127.0.0.1", Some(DeliverError::Unavailable(Trouble::Tls)))] {
        let (pem, acceptor) = authority("mx.example");
        let (_folder, path) = file(pem);
        let (port, _hears) = server(Manners { offers_tls: true, tls: Some(acceptor), ..Manners::default() }).await;
        let config = SmtpExitConfig { tls: SmtpTls::Required, ca_file: Some(path), ..config(port) };
        let called = SmtpExit::called(&config, name, &from).unwrap().call(&from).await;
        assert_eq!(called.err(), expected, "{name}");
    }
}

#[tokio::test]
async fn implicit_tls_is_not_spoken_with_a_server_that_speaks_none() {
    let (port, mut hears) = server(Manners { hang_at: Some("mail"), ..Manners::default() }).await;
    let config = SmtpExitConfig { tls: SmtpTls::Implicit, ..config(port) };
    assert_eq!(deliver_by(config, "\r\n").await, Err(DeliverError::Unavailable(Trouble::Tls)));
    assert!(!all(&mut hears).iter().any(|line| line.starts_with("EHLO")));
}

#[tokio::test]
async fn answers_that_somebody_put_behind_starttls_are_not_taken_for_the_servers() {
    let (pem, acceptor) = authority("127.0.0.1");
    let (_folder, path) = file(pem);
    let injected = ("STARTTLS", "220 go on\r\n250 hello\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 taken");
    let manners = Manners { offers_tls: true, tls: Some(acceptor), refuse: Some(injected), ..Manners::default() };
    let (port, _hears) = server(manners).await;
    let config = SmtpExitConfig { tls: SmtpTls::Required, ca_file: Some(path), ..config(port) };
    assert_eq!(deliver_by(config, "\r\n").await, Err(DeliverError::Unavailable(Trouble::Tls)));
}

#[tokio::test]
async fn login_is_said_by_the_better_way_that_is_offered() {
    let plain = ["AUTH PLAIN AGV4aXQAaHVudGVyMg=="].as_slice();
    let login = ["AUTH LOGIN", "ZXhpdA==", "aHVudGVyMg=="].as_slice();
    for (logins, expected) in
        [("PLAIN LOGIN", plain), ("LOGIN PLAIN", plain), ("CRAM-MD5 PLAIN", plain), ("LOGIN", login)]
    {
        let (port, mut hears) = server(Manners { logins: Some(logins), ..Manners::default() }).await;
        assert_eq!(deliver_by(with_login(config(port)), "\r\n").await, Ok(()), "{logins}");
        let said = all(&mut hears);
        assert_eq!(said.first().unwrap(), "EHLO exit.example");
        assert_eq!(said.get(1..=expected.len()).unwrap(), expected);
        assert_eq!(said.get(expected.len() + 1).unwrap(), "MAIL FROM:<nobody@exit.example>");
    }
}

#[tokio::test]
async fn login_is_said_within_tls_alone_where_there_is_any() {
    for tls in [SmtpTls::Required, SmtpTls::Implicit] {
        let (pem, acceptor) = authority("127.0.0.1");
        let (_folder, path) = file(pem);
        let implicit = tls == SmtpTls::Implicit;
        let logins = Some("PLAIN");
        let manners = Manners { offers_tls: true, tls: Some(acceptor), implicit, logins, ..Manners::default() };
        let (port, mut hears) = server(manners).await;
        let config = SmtpExitConfig { tls, ca_file: Some(path), ..with_login(config(port)) };
        assert_eq!(deliver_by(config, "\r\n").await, Ok(()), "{tls:?}");
        let said = all(&mut hears);
        assert!(said.iter().any(|line| line.starts_with("+AUTH PLAIN ")), "{said:?}");
        assert!(!said.iter().any(|line| line.starts_with("AUTH")), "{said:?}");
    }
}

#[tokio::test]
async fn login_that_is_refused_is_no_refusal_of_the_mail() {
    for (logins, command, answer, expected) in [
        ("PLAIN", "AUTH", "535 wrong", Trouble::LoginRefused { code: 535 }),
        ("LOGIN", "aHVudGVyMg==", "535 wrong", Trouble::LoginRefused { code: 535 }),
        ("LOGIN", "AUTH", "504 not so", Trouble::LoginRefused { code: 504 }),
        ("PLAIN", "AUTH", "454 not now", Trouble::TurnedAway { code: 454 }),
        ("PLAIN", "AUTH", "334 more", Trouble::Protocol),
        ("CRAM-MD5", "none", "", Trouble::NoLogin),
    ] {
        let manners = Manners { logins: Some(logins), refuse: Some((command, answer)), ..Manners::default() };
        let (port, mut hears) = server(manners).await;
        let outcome = deliver_by(with_login(config(port)), "\r\n").await;
        assert_eq!(outcome, Err(DeliverError::Unavailable(expected)), "{logins} {answer}");
        assert!(!all(&mut hears).iter().any(|line| line.starts_with("MAIL")), "{logins} {answer}");
        assert!(!outcome.unwrap_err().to_string().contains("hunter2"));
    }
    assert_eq!(Trouble::LoginRefused { code: 535 }.key(), Some("password"));
    assert_eq!(Trouble::TurnedAway { code: 454 }.key(), None);
}

#[tokio::test]
async fn server_that_wants_a_login_refuses_no_mail() {
    let refuse = Some(("MAIL", "530 authentication required"));
    let outcome = deliver_to(Manners { refuse, ..Manners::default() }).await;
    assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::LoginWanted)));
    // Of one recipient, whom a stranger chose, it may say anything.
    let refuse = Some(("RCPT", "530 authentication required"));
    let outcome = deliver_to(Manners { refuse, ..Manners::default() }).await;
    assert_eq!(outcome, Err(DeliverError::Transient { code: 530 }));
}

#[test]
fn login_that_could_be_overheard_is_refused() {
    let elsewhere = |tls| with_login(SmtpExitConfig { host: "mail.example".into(), tls, ..config(25) });
    for tls in [SmtpTls::None, SmtpTls::Opportunistic] {
        let why = refusal(&elsewhere(tls));
        assert!(matches!(why, InvalidSmtpExit::LoginInTheClear), "{why:?}");
        assert!(why.to_string().contains("Set tls to"), "{why}");
    }
    for host in ["localhost", "192.0.2.1", "127.0.0.1.example", "::2"] {
        let why = refusal(&with_login(SmtpExitConfig { host: host.into(), ..config(25) }));
        assert!(matches!(why, InvalidSmtpExit::LoginInTheClear), "{host}: {why:?}");
    }
    // The proxy's 127.0.0.1 is not ours.
    let why = refusal(&with_login(SmtpExitConfig { socks: "192.0.2.1:9050".parse().ok(), ..config(25) }));
    assert!(matches!(why, InvalidSmtpExit::LoginInTheClear), "{why:?}");
    let from = Mailbox::parse("nobody@exit.example").unwrap();
    for fine in [elsewhere(SmtpTls::Required), elsewhere(SmtpTls::Implicit), with_login(config(25))] {
        assert!(SmtpExit::new(&fine, &from).is_ok(), "{fine:?}");
    }
    assert!(SmtpExit::new(&with_login(SmtpExitConfig { host: "::1".into(), ..config(25) }), &from).is_ok());
}

#[test]
fn login_that_is_half_or_unspeakable_is_refused() {
    let login = |user: Option<&str>, password: Option<&str>| {
        let password = password.map(|it| Password::new(it.into()));
        refusal(&SmtpExitConfig { user: user.map(Into::into), password, ..config(25) })
    };
    for (user, password) in
        [(Some("exit"), None), (None, Some("hunter2")), (Some(""), Some("hunter2")), (Some("exit"), Some(""))]
    {
        let why = login(user, password);
        assert!(matches!(why, InvalidSmtpExit::HalfLogin), "{user:?}: {why:?}");
    }
    for (user, password) in [("ex\0it", "hunter2"), ("exit", "hunter\0two")] {
        let why = login(Some(user), Some(password));
        assert!(matches!(why, InvalidSmtpExit::LoginWithNul), "{why:?}");
        assert!(!why.to_string().contains("hunter"), "{why}");
    }
}

#[test]
fn file_of_certificates_that_is_of_no_use_is_refused_by_its_name() {
    let (good, _) = authority("127.0.0.1");
    let cut = good.replacen("\nM", "\n!", 1);
    let no_certificate = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let with = |path: PathBuf, tls| SmtpExitConfig { tls, ca_file: Some(path), ..config(25) };
    let bad = |octets: &[u8]| {
        let (_folder, path) = file(octets);
        let why = refusal(&with(path.clone(), SmtpTls::Required));
        assert!(why.to_string().contains(&path.display().to_string()), "{why}");
        let InvalidSmtpExit::CaFile { source, .. } = why else { panic!("{why:?}") };
        source
    };
    assert!(matches!(bad(b""), BadCaFile::NoCertificate));
    assert!(matches!(bad(KeyPair::generate().unwrap().serialize_pem().as_bytes()), BadCaFile::NoCertificate));
    assert!(matches!(bad(&[b' '; 1024 * 1024 + 1]), BadCaFile::TooLong));
    assert!(matches!(bad(cut.as_bytes()), BadCaFile::Certificate(_)));
    assert!(matches!(bad(no_certificate.as_bytes()), BadCaFile::Certificate(_)));
    let missing = refusal(&with("/nowhere/authority.pem".into(), SmtpTls::Implicit));
    assert!(matches!(&missing, InvalidSmtpExit::CaFile { source: BadCaFile::Read(_), .. }), "{missing:?}");
    let (_folder, path) = file(good);
    for tls in [SmtpTls::None, SmtpTls::Opportunistic] {
        let why = refusal(&with(path.clone(), tls));
        assert!(matches!(why, InvalidSmtpExit::CaFileUnused), "{why:?}");
    }
}

#[tokio::test]
async fn server_is_called_from_the_address_that_is_set() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, mut hears) = mpsc::unbounded_channel();
    let called = tokio::spawn(async move {
        let (stream, from) = listener.accept().await.unwrap();
        let _ = converse(stream, &Manners::default(), &heard).await;
        from.ip()
    });
    let bound = SmtpExitConfig { bind: "127.0.0.2".parse().ok(), ..config(port) };
    assert_eq!(deliver_by(bound, "\r\n").await, Ok(()));
    assert_eq!(called.await.unwrap().to_string(), "127.0.0.2");
    assert!(!all(&mut hears).is_empty());
}

#[tokio::test]
async fn address_that_is_not_ours_or_of_another_kind_reaches_no_server() {
    let (port, _hears) = server(Manners::default()).await;
    for address in ["192.0.2.1", "::1"] {
        let bound = SmtpExitConfig { bind: address.parse().ok(), ..config(port) };
        let outcome = deliver_by(bound, "\r\n").await;
        assert_eq!(outcome, Err(DeliverError::Unavailable(Trouble::LocalAddress)), "{address}");
    }
    assert_eq!(Trouble::LocalAddress.key(), Some("bind"));
}

/// A SOCKS5 proxy of one connection, to `port` of this machine whatever it is asked for, or with this refusal. Tells what kind
/// of address it was asked for, and which.
async fn proxy(port: u16, refusal: Option<u8>) -> (Proxy, tokio::task::JoinHandle<(u8, String, u16)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, [5, 1, 0], "no login");
        stream.write_all(&[5, 0]).await.unwrap();
        let mut request = [0; 4];
        stream.read_exact(&mut request).await.unwrap();
        let [5, 1, 0, kind] = request else { panic!("{request:?}") };
        let len = if kind == 3 { stream.read_u8().await.unwrap() } else { 4 };
        let mut name = vec![0; len.into()];
        stream.read_exact(&mut name).await.unwrap();
        let asked = (kind, String::from_utf8_lossy(&name).into_owned(), stream.read_u16().await.unwrap());
        stream.write_all(&[5, refusal.unwrap_or(0), 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        if refusal.is_none() {
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut server).await;
        }
        asked
    });
    (address, asked)
}

#[tokio::test]
async fn proxy_is_told_the_name_of_the_server_and_not_its_address() {
    for tls in [SmtpTls::None, SmtpTls::Required, SmtpTls::Implicit] {
        let (pem, acceptor) = authority("mail.example");
        let (_folder, path) = file(pem);
        let implicit = tls == SmtpTls::Implicit;
        let manners = Manners { offers_tls: true, tls: Some(acceptor), implicit, ..Manners::default() };
        let (port, mut hears) = server(manners).await;
        let (proxy, asked) = proxy(port, None).await;
        let config = SmtpExitConfig {
            host: "mail.example".into(),
            tls,
            ca_file: tls.proves_the_server().then_some(path),
            socks: Some(proxy),
            ..config(2525)
        };
        assert_eq!(deliver_by(config, "Subject: x\r\n\r\nx\r\n").await, Ok(()), "{tls:?}");
        assert_eq!(asked.await.unwrap(), (3, "mail.example".to_owned(), 2525), "{tls:?}");
        let said = all(&mut hears);
        let mark = if tls.proves_the_server() { "+" } else { "" };
        assert!(said.iter().any(|line| *line == format!("{mark}RCPT TO:<bob@example.org>")), "{said:?}");
    }
}

#[tokio::test]
async fn proxy_that_does_not_reach_the_server_or_is_away_is_named() {
    let (proxy, asked) = proxy(0, Some(4)).await;
    let through = |proxy| SmtpExitConfig { host: "mail.example".into(), socks: Some(proxy), ..config(25) };
    let away = Err(DeliverError::Unavailable(Trouble::Proxy));
    assert_eq!(deliver_by(through(proxy), "\r\n").await, away);
    assert_eq!(asked.await.unwrap().0, 3);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(deliver_by(through(nobody.to_string().parse().unwrap()), "\r\n").await, away);
}

#[test]
fn address_of_ours_and_proxy_are_not_set_together() {
    let both = SmtpExitConfig { bind: "127.0.0.1".parse().ok(), socks: "127.0.0.1:9050".parse().ok(), ..config(25) };
    let why = refusal(&both);
    assert!(matches!(why, InvalidSmtpExit::BindWithProxy), "{why:?}");
}

#[test]
fn another_server_is_one_of_which_anything_differs() {
    let from = Mailbox::parse("nobody@exit.example").unwrap();
    let make = |config: &SmtpExitConfig| SmtpExit::new(config, &from).unwrap();
    let (folder, path) = file(authority("a.example").0);
    let known = with_login(SmtpExitConfig { tls: SmtpTls::Required, ca_file: Some(path.clone()), ..config(25) });
    let exit = make(&known);
    assert!(exit.is(&make(&known)));
    assert!(exit.is(&make(&SmtpExitConfig { hello: Some("exit.example".into()), ..known.clone() })), "the same words");
    let changes: [fn(&mut SmtpExitConfig); 10] = [
        |it| it.host = "mail.example".into(),
        |it| it.port = 26,
        |it| it.tls = SmtpTls::Implicit,
        |it| it.timeout = Duration::from_secs(1),
        |it| it.hello = Some("mx.example".into()),
        |it| it.user = Some("other".into()),
        |it| it.password = Some(Password::new("hunter3".into())),
        |it| it.ca_file = None,
        |it| it.bind = "127.0.0.1".parse().ok(),
        |it| it.socks = "127.0.0.1:9050".parse().ok(),
    ];
    for (which, change) in changes.into_iter().enumerate() {
        let mut other = known.clone();
        change(&mut other);
        assert!(!exit.is(&make(&other)), "{which}");
    }
    fs::write(&path, authority("b.example").0).unwrap();
    assert!(!exit.is(&make(&known)), "another authority");
    drop(folder);
}

#[test]
fn password_is_not_printed() {
    let printed = format!("{:?}", with_login(config(25)));
    assert!(printed.contains("password") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn settings_are_read_as_an_operator_writes_them() {
    let json = r#"{"host": "mail", "port": 587, "tls": "required", "timeout": "90 seconds", "hello": null}"#;
    let config: SmtpExitConfig = serde_json::from_str(json).unwrap();
    assert_eq!((config.port, config.tls, config.timeout), (587, SmtpTls::Required, Duration::from_secs(90)));
    let more = r#"{"tls": "implicit", "user": "exit", "password": "hunter2", "bind": "::1", "socks": "[::1]:9050"}"#;
    let more: SmtpExitConfig = serde_json::from_str(more).unwrap();
    assert_eq!((more.tls, more.password.as_ref().unwrap().expose()), (SmtpTls::Implicit, "hunter2"));
    assert!(!serde_json::to_string(&more).unwrap().contains("hunter2"));
    for wrong in [r#"{"hots": "x"}"#, r#"{"password": ""}"#, r#"{"bind": "here"}"#, r#"{"socks": "127.0.0.1"}"#] {
        assert!(serde_json::from_str::<SmtpExitConfig>(wrong).is_err(), "{wrong}");
    }
    let defaults = serde_json::to_string(&SmtpExitConfig::default()).unwrap();
    assert_eq!(serde_json::from_str::<SmtpExitConfig>(&defaults).unwrap(), SmtpExitConfig::default());
}

#[tokio::test]
async fn server_that_is_only_asked_hears_of_no_mail() {
    let (port, mut hears) = server(Manners::default()).await;
    let (from, to) = (Mailbox::parse("nobody@exit.example").unwrap(), Mailbox::parse("me@exit.example").unwrap());
    let exit = SmtpExit::new(&config(port), &from).unwrap();
    exit.call(&from).await.unwrap().would_take(&to).await.unwrap();
    let commands = ["EHLO exit.example", "MAIL FROM:<nobody@exit.example>", "RCPT TO:<me@exit.example>", "QUIT"];
    assert_eq!(all(&mut hears), commands);
    let (port, _hears) = server(Manners { refuse: Some(("RCPT", "550 who?")), ..Manners::default() }).await;
    let exit = SmtpExit::new(&config(port), &from).unwrap();
    let refused = exit.call(&from).await.unwrap().would_take(&to).await;
    assert_eq!(refused, Err(DeliverError::Permanent { code: 550 }));
}
