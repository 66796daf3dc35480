//! Where whoever gets mail from the exit opts out by the link in it: a page on loopback, for the operator's web server to put
//! under a name of his.
//!
//! To look at the page does nothing, since programs follow links in mail to see where they lead: a button, or the program of
//! a mail box that asks for it (RFC 8058), sends a POST. Its body is not read: all that counts is in the link. Nothing of who
//! asks is logged or kept, and of a mailbox nobody hears more than he has sent.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mix::net::guard::{Bounds, Guard};
use mix::node::{NodeControl, NotOptedOut};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// All connections come from the web server in front. One of them has one page.
const BOUNDS: Bounds =
    Bounds { connections: 32, per_host: 32, lifetime: Duration::from_secs(10), silence: Duration::from_secs(5) };
/// Octets of a query at most: a token and a mailbox, of which each character may be written as three.
const QUERY_LEN: usize = 2048;
/// Requests that opt out and are let through at once, and how soon there is one more. A commit may follow each.
const AT_ONCE: u32 = 20;
const ONE_MORE: Duration = Duration::from_millis(200);

const DONE: &str = "This mailbox gets no more mail from this remailer. Its operator can undo that.";
const NO_LINK: &str = "This link is not whole. Take all of it from the mail, to the end of its line.";
const BUSY: &str = "There are too many requests at the moment. Try again in a minute.";
const FAILED: &str = "It cannot be noted at the moment. Try again later, or write to the operator.";

/// What the pages need.
#[derive(Clone)]
struct House {
    node: NodeControl,
    pace: Arc<Mutex<Pace>>,
}

/// How many requests are let through.
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { left: AT_ONCE, since: Instant::now() }
    }

    fn lets_through(&mut self) -> bool {
        while self.left < AT_ONCE && self.since.elapsed() >= ONE_MORE {
            self.left += 1;
            self.since += ONE_MORE;
        }
        if self.left == AT_ONCE {
            self.since = Instant::now();
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// Serves the page at any path until stopped.
pub(crate) async fn serve(listener: TcpListener, node: NodeControl, stop: CancellationToken) {
    let house = House { node, pace: Arc::new(Mutex::new(Pace::new())) };
    let router = Router::new().fallback(get(ask).post(opt_out)).with_state(house);
    let server =
        axum::serve(Guard::new(listener, BOUNDS), router).with_graceful_shutdown(stop.clone().cancelled_owned());
    // A client that holds its connection open must not hold up the end.
    if let Some(Err(e)) = stop.run_until_cancelled(server.into_future()).await {
        error!(error = %e, "the page for opting out is not served any more");
    }
}

/// What a link says.
struct Link {
    token: String,
    address: String,
}

impl Link {
    fn read(query: Option<&str>) -> Option<Self> {
        let query = query.filter(|query| query.len() <= QUERY_LEN)?;
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).next().flatten()
        };
        Some(Self { token: value("token")?, address: value("address")? })
    }
}

/// The text in which `%XX` stands for an octet. `None` where it is none, or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut octets = text.bytes();
    let mut plain = Vec::new();
    while let Some(octet) = octets.next() {
        plain.push(match octet {
            b'%' => {
                let mut digit = || u8::try_from(char::from(octets.next()?).to_digit(16)?).ok();
                digit()? << 4 | digit()?
            }
            other => other,
        });
    }
    String::from_utf8(plain).ok()
}

/// The page with the button.
async fn ask(State(house): State<House>, RawQuery(query): RawQuery) -> Response {
    let Some(Link { token, address }) = Link::read(query.as_deref()) else {
        return page(StatusCode::NOT_FOUND, &escaped(NO_LINK));
    };
    match house.node.may_opt_out(&token, &address) {
        Ok(_) => {
            let address = escaped(&address);
            // Without an action a form goes to where it came from, the token with it.
            let form = format!(
                "Shall <b>{address}</b> get no more mail from this remailer?</p>\
                 <form method=\"post\"><button type=\"submit\">No more mail</button></form><p>"
            );
            page(StatusCode::OK, &form)
        }
        Err(why) => refused(&why),
    }
}

async fn opt_out(State(house): State<House>, RawQuery(query): RawQuery) -> Response {
    let Some(Link { token, address }) = Link::read(query.as_deref()) else {
        return page(StatusCode::NOT_FOUND, &escaped(NO_LINK));
    };
    if !house.pace.lock().unwrap_or_else(PoisonError::into_inner).lets_through() {
        return page(StatusCode::TOO_MANY_REQUESTS, &escaped(BUSY));
    }
    match house.node.opt_out(&token, &address).await {
        Ok(()) => page(StatusCode::OK, &escaped(DONE)),
        Err(why) => refused(&why),
    }
}

fn refused(why: &NotOptedOut) -> Response {
    match why {
        NotOptedOut::Address(_) | NotOptedOut::Token(_) => page(StatusCode::NOT_FOUND, &escaped(NO_LINK)),
        NotOptedOut::Full | NotOptedOut::Store(_) => page(StatusCode::SERVICE_UNAVAILABLE, &escaped(FAILED)),
    }
}

/// A page that fetches nothing, says nowhere where it was linked from, and stays in no cache.
fn page(status: StatusCode, content: &str) -> Response {
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>No more mail</title></head>\
         <body><p>{content}</p></body></html>\n"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
    ];
    (status, headers, html).into_response()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '"' | '\'' => {
                // Writing into a text does not fail.
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use mix::crypto::pk::PrivateKey;
    use mix::deliver::opt_out::OptOutKey;
    use mix::net::sockets::Inherited;
    use mix::node::config::{NetworkConfig, NodeConfig};
    use mix::node::{Counters, Node, Parts, World, keys};
    use mix::path::Mailbox;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// The status of the answer, and all of it.
    async fn answer(port: u16, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request =
            format!("{request} HTTP/1.1\r\nHost: exit.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    fn token(home: &std::path::Path, of: &str) -> String {
        let identity: PrivateKey =
            keys::load_or_make_identity(&home.join("keys"), 2048, None, &mut rand::rng()).unwrap();
        OptOutKey::of(&identity).token(&Mailbox::parse(of).unwrap()).to_string()
    }

    #[tokio::test]
    async fn looking_at_the_page_does_nothing_and_its_button_opts_out_by_the_right_token_alone() {
        let (folder, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut config = NodeConfig { home: folder.path().join("node"), ..NodeConfig::default() };
        config.listen = "127.0.0.1:0".parse().unwrap();
        let parts = Parts {
            world: World::real(),
            counters: Counters::default(),
            mailboxes: None,
            network: NetworkConfig::default(),
            directory: None,
            passphrase: None,
            sockets: Inherited::default(),
            stop: stop.clone(),
        };
        let running = Node::start(&config, parts).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(serve(listener, running.control.clone(), stop.clone()));
        let opted_out = async || running.control.opted_out(String::new()).await.unwrap();
        let (own, others) = (token(&config.home, "o'bob@example.org"), token(&config.home, "eve@example.org"));
        let path = |token: &str| format!("/opt-out?token={token}&address=o%27bob%40example.org");
        for method in ["GET", "POST"] {
            let (status, page) = answer(port, &format!("{method} {}", path(&others))).await;
            assert_eq!(status, 404, "{page}");
            assert!(!page.contains("bob"), "{page}");
            assert_eq!(answer(port, &format!("{method} /")).await.0, 404);
        }
        let (status, page) = answer(port, &format!("GET {}", path(&own))).await;
        assert!(status == 200 && page.contains("<form method=\"post\">") && page.contains("o&#39;bob@"), "{page}");
        assert!(page.contains("referrer-policy: no-referrer") && page.contains("cache-control: no-store"), "{page}");
        assert_eq!(opted_out().await, [""; 0]);
        assert_eq!(answer(port, &format!("PUT {}", path(&own))).await.0, 405);
        let (status, page) = answer(port, &format!("POST {}", path(&own))).await;
        assert!(status == 200 && page.contains("no more mail"), "{page}");
        assert_eq!(opted_out().await, ["o'bob@example.org"]);
        stop.cancel();
        served.await.unwrap();
        running.ended().await;
    }

    #[test]
    fn link_is_read_as_it_was_written_and_nothing_else_is() {
        let link = Link::read(Some("token=00ff&address=a%21%2Bb%40example.org")).unwrap();
        assert_eq!((link.token.as_str(), link.address.as_str()), ("00ff", "a!+b@example.org"));
        let long = format!("token=00&address={}", "x".repeat(QUERY_LEN));
        for query in
            ["", "token=00", "address=a%40b", "token=0%&address=a", "token=%ff&address=a", "token=%+1&address=a", &long]
        {
            assert!(Link::read(Some(query)).is_none(), "{query}");
        }
        assert!(Link::read(None).is_none());
    }

    #[test]
    fn nothing_of_a_mailbox_becomes_part_of_the_page() {
        assert_eq!(escaped("<b>'\"&x"), "&#60;b&#62;&#39;&#34;&#38;x");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_through_at_a_pace() {
        let mut pace = Pace::new();
        let mut through = |n: u32| (0..n).filter(|_| pace.lets_through()).count();
        assert_eq!(through(AT_ONCE + 5), 20);
        tokio::time::advance(ONE_MORE * 3).await;
        assert_eq!(through(10), 3);
        tokio::time::advance(ONE_MORE * 1000).await;
        assert_eq!(through(AT_ONCE + 5), 20);
    }
}
