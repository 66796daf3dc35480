//! What mail domains promise, from a web server on loopback, by TLS with a certificate of an authority that the test alone
//! trusts. Here, for it takes both the network and delivery.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::deliver::mx::testing::{At, Zone, name_server};
use crate::deliver::mx::{Fetch, MxConfig, MxExit, NotOffered, Policies};
use crate::deliver::smtp::tests::{Manners, all, authority, self_signed, server_on};
use crate::net::fetch::{FetchError, fetch_policy_by};
use crate::path::Mailbox;

const HOST: &str = "mta-sts.b.example";
const POLICY: &str = "version: STSv1\r\nmode: enforce\r\nmx: mx.b.example\r\nmax_age: 604800\r\n";
/// Long enough for anything on loopback.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a web server answers.
#[derive(Clone)]
enum Answer {
    /// With these octets.
    Says(Vec<u8>),
    /// With an octet now and then, for ever.
    Drips,
}

/// A web server with a certificate for `name`; where it is, who vouches for it, and what it is asked.
struct Web {
    address: SocketAddr,
    authority: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn of(name: &str, answer: Answer) -> Self {
        let (authority, tls) = authority(name);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, answer, heard) = (tls.clone(), answer.clone(), Arc::clone(&heard));
                tokio::spawn(async move {
                    // Whoever does not trust it goes.
                    let Ok(mut stream) = tls.accept(stream).await else { return };
                    let mut request = vec![0; 4096];
                    let len = stream.read(&mut request).await.unwrap_or(0);
                    request.truncate(len);
                    heard.lock().unwrap().push(String::from_utf8(request).unwrap());
                    match answer {
                        Answer::Says(octets) => {
                            let _ = stream.write_all(&octets).await;
                            let _ = stream.shutdown().await;
                        }
                        Answer::Drips => {
                            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nversion: STSv1\n";
                            for octet in head.iter().chain(std::iter::repeat(&b'\n')) {
                                if stream.write_all(&[*octet]).await.is_err() || stream.flush().await.is_err() {
                                    return;
                                }
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, authority, requests }
    }

    async fn saying(head: &str, body: &str) -> Self {
        let answer = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{body}");
        Self::of(HOST, Answer::Says(answer.into_bytes())).await
    }

    async fn fetch(&self, timeout: Duration) -> Result<String, FetchError> {
        fetch_policy_by(&self.authority, HOST, &[self.address], timeout).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that an error says, and what is behind it.
fn whole(why: &FetchError) -> String {
    let mut said = why.to_string();
    let mut source = why.source();
    while let Some(why) = source {
        said = format!("{said}: {why}");
        source = why.source();
    }
    said
}

#[tokio::test]
async fn policy_comes_by_https_and_the_request_tells_nothing_of_us() {
    let web = Web::saying("200 OK\r\ncontent-type: text/plain", POLICY).await;
    assert_eq!(web.fetch(PATIENCE).await.unwrap(), POLICY);
    let requests = web.requests();
    let [request] = &requests[..] else { panic!("one request: {requests:?}") };
    assert!(request.starts_with("GET /.well-known/mta-sts.txt HTTP/1.1\r\n"), "{request}");
    let lines = request.trim_end().lines().skip(1).map(str::to_ascii_lowercase);
    let mut names: Vec<_> = lines.map(|line| line.split(':').next().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["accept", "host"], "{request}");
    assert!(request.to_ascii_lowercase().contains("host: mta-sts.b.example\r\n"), "{request}");
}

#[tokio::test]
async fn answer_that_is_no_policy_of_this_place_is_refused() {
    let elsewhere = Web::saying("200 OK\r\ncontent-type: text/plain", POLICY).await;
    let moved = format!("301 Moved\r\nlocation: https://{HOST}:{}/", elsewhere.address.port());
    for (head, expected) in [(moved.as_str(), 301), ("404 Not Found", 404), ("204 No Content", 204)] {
        let web = Web::saying(head, "").await;
        let outcome = web.fetch(PATIENCE).await;
        assert!(matches!(outcome, Err(FetchError::Status { code }) if code == expected), "{head}: {outcome:?}");
        assert_eq!(web.requests().len(), 1);
    }
    assert!(elsewhere.requests().is_empty(), "nobody follows");
    let html = Web::saying("200 OK\r\ncontent-type: text/html", POLICY).await.fetch(PATIENCE).await;
    assert!(matches!(html, Err(FetchError::Type)), "{html:?}");
    let large = format!("{POLICY}{}", "\r\n".repeat(40_000));
    let large = Web::saying("200 OK\r\ncontent-type: text/plain", &large).await.fetch(PATIENCE).await;
    assert!(matches!(large, Err(FetchError::TooLong { max: 65_536 })), "{large:?}");
}

#[tokio::test]
async fn web_server_that_is_slow_without_end_is_given_up() {
    let outcome = Web::of(HOST, Answer::Drips).await.fetch(Duration::from_millis(500)).await;
    assert!(matches!(outcome, Err(FetchError::Unavailable(_))), "{outcome:?}");
    let said = whole(&outcome.unwrap_err());
    assert!(said.contains("timed out"), "{said}");
}

#[tokio::test]
async fn web_server_that_does_not_prove_its_name_is_not_asked() {
    let says = Answer::Says(format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n{POLICY}").into_bytes());
    let others = Web::of("b.example", says.clone()).await;
    let outcome = others.fetch(PATIENCE).await;
    assert!(matches!(outcome, Err(FetchError::Unavailable(_))), "{outcome:?}");
    let said = whole(&outcome.unwrap_err());
    assert!(said.contains("certificate not valid for name"), "{said}");
    let web = Web::of(HOST, says).await;
    let unknown = fetch_policy_by(&others.authority, HOST, &[web.address], PATIENCE).await;
    assert!(matches!(unknown, Err(FetchError::Unavailable(_))), "{unknown:?}");
    let said = whole(&unknown.unwrap_err());
    // Both authorities have no name, so that its key alone tells the one that is trusted.
    assert!(said.contains("invalid peer certificate: BadSignature"), "{said}");
    assert!(others.requests().is_empty() && web.requests().is_empty());
}

/// Where mail to `bob@b.example` goes: a server that speaks TLS by a certificate that nobody vouches for.
async fn mail_server() -> (MxConfig, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = IpAddr::from([127, 0, 0, 1]);
    let manners = Manners { offers_tls: true, tls: Some(self_signed("mx.b.example")), ..Manners::default() };
    let hears = server_on(listener, manners);
    let zone: Zone = vec![
        ("b.example", At::Mx(10, "mx.b.example")),
        ("mx.b.example", At::Address(here)),
        ("_mta-sts.b.example", At::Text(&["v=STSv1; id=1"])),
        ("mta-sts.b.example", At::Address(here)),
    ];
    let (names, _) = name_server(zone).await;
    (MxConfig { name_servers: vec![names], port, inside: vec![here], timeout: PATIENCE, ..MxConfig::default() }, hears)
}

#[tokio::test]
async fn mail_waits_for_a_server_that_breaks_the_policy_of_its_web_server_and_goes_where_none_can_be_had() {
    let good = format!("200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}", POLICY.len());
    for (head, goes) in [(good.as_str(), false), ("404 Not Found", true)] {
        let web = Web::saying(head, POLICY).await;
        let (address, authority) = (web.address, web.authority.clone());
        let fetch: Fetch = Box::new(move |host, addresses| {
            let authority = authority.clone();
            Box::pin(async move {
                let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, address.port())).collect();
                fetch_policy_by(&authority, host.as_str(), &addresses, PATIENCE).await.ok()
            })
        });
        let (config, mut hears) = mail_server().await;
        let from = Mailbox::parse("nobody@exit.example").unwrap();
        let exit = MxExit::new(&config, &from, Arc::new(Policies::new(fetch, None))).unwrap();
        let to = Mailbox::parse("bob@b.example").unwrap();
        let offered = exit.offer(&from, &to, &mut rand::rng()).await;
        assert_eq!(offered.err(), (!goes).then_some(NotOffered::Away), "{head}");
        assert_eq!(web.requests().len(), 1, "{head}");
        let heard_of_bob = all(&mut hears).iter().any(|line| line.contains("RCPT"));
        assert_eq!(heard_of_bob, goes, "{head}");
    }
}

/// A connection that nobody speaks TLS on.
#[tokio::test]
async fn web_server_without_tls_is_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ((authority, _), addresses) = (authority(HOST), [address]);
    let plain = async {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n").await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        heard
    };
    let (outcome, heard) = tokio::join!(fetch_policy_by(&authority, HOST, &addresses, PATIENCE), plain);
    assert!(matches!(outcome, Err(FetchError::Unavailable(_))), "{outcome:?}");
    assert!(!heard.windows(3).any(|part| part == b"GET"));
}
