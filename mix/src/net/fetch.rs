//! Fetches directories and uploads descriptors over HTTP (dir-spec 5), and fetches what mail domains promise (RFC 8461). The
//! only file that names `reqwest`.
//!
//! What is fetched is text and no more: whom to believe is decided by `directory::signed`, so plain HTTP does no harm but
//! show that somebody fetched a directory. Nothing tells one client from another: no User-Agent, no cookies, no redirects.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, Url};

use super::tls;

/// How much is fetched, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// Octets that are read from the network.
    pub body: usize,
    /// Octets after decompression: gzip can grow a thousandfold.
    pub inflated: usize,
    /// From the first octet sent to the last received.
    pub timeout: Duration,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            body: 8 * 1024 * 1024,
            inflated: crate::directory::signed::DIRECTORY_LIMITS.len,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Why nothing was fetched or uploaded.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL, or one that is neither http nor https.
    #[error("{url} is not an http or https URL")]
    Url {
        /// What was given.
        url: String,
    },
    /// TLS or the client could not be set up on this machine.
    #[error("setting up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The server could not be reached or broke off. Worth another try.
    #[error("the server is unavailable")]
    Unavailable(#[source] reqwest::Error),
    /// The server answered, but not with what was asked for.
    #[error("the server answered with HTTP status {code}")]
    Status {
        /// The status.
        code: u16,
    },
    /// More octets than the limit.
    #[error("the answer is longer than {max} octets")]
    TooLong {
        /// Octets allowed.
        max: usize,
    },
    /// Looks like gzip but is none.
    #[error("the answer does not decompress")]
    Gzip,
    /// Not UTF-8, so no directory either.
    #[error("the answer is not text")]
    NotText,
    /// Not what a policy is sent as.
    #[error("the answer is not of type text/plain")]
    Type,
    /// Not the two lines of dir-spec 5.2.
    #[error("the answer to an upload has not the form of the specification")]
    Reply,
    /// The directory server will not list the descriptor.
    #[error("the directory server refused the descriptor: {message}")]
    Refused {
        /// Why, in its words.
        message: String,
    },
}

/// What became of an uploaded descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It will be listed.
    Accepted,
    /// It will be listed once the operator of the directory agrees.
    Waiting {
        /// What the server says about it.
        message: String,
    },
}

/// Octets of the longest answer to an upload that is read: two lines.
const MAX_REPLY: usize = 4096;

/// Fetches a directory, compressed or not, and returns its text.
///
/// # Errors
/// [`FetchError`], all variants but those of uploads.
pub async fn fetch_directory(url: &str, limits: &FetchLimits) -> Result<String, FetchError> {
    let (url, client) = client(url, limits)?;
    let response = client.get(url).send().await.map_err(FetchError::Unavailable)?;
    let body = body(response, limits.body).await?;
    String::from_utf8(inflated(body, limits.inflated)?).map_err(|_| FetchError::NotText)
}

/// Uploads the text of a descriptor to the upload URL of a directory server.
///
/// # Errors
/// [`FetchError`]; [`FetchError::Refused`] when the server understood and said no.
pub async fn upload_descriptor(url: &str, text: &str) -> Result<Uploaded, FetchError> {
    let (url, client) = client(url, &FetchLimits::default())?;
    let form = form_encode("desc", text);
    let request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
    let response = request.send().await.map_err(FetchError::Unavailable)?;
    let reply = body(response, MAX_REPLY).await?;
    uploaded(std::str::from_utf8(&reply).map_err(|_| FetchError::NotText)?)
}

/// What is read of a policy, and how long it may take: RFC 8461 3.3 names 64 KB and a minute.
const POLICY: FetchLimits = FetchLimits { body: 64 * 1024, inflated: 64 * 1024, timeout: Duration::from_secs(30) };

/// Fetches the policy of a mail domain from its web server (RFC 8461 3.3), which has one of these addresses and must prove
/// its name.
///
/// # Errors
/// [`FetchError`], all variants but those of uploads.
pub async fn fetch_policy(host: &str, addresses: &[IpAddr]) -> Result<String, FetchError> {
    let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, 443)).collect();
    let (url, builder) = policy_client(host, &addresses, &POLICY)?;
    policy(builder.build().map_err(FetchError::Client)?, url, POLICY.body).await
}

/// As [`fetch_policy`], for tests: from other ports, and by those alone whom this authority (in PEM) vouches for.
#[cfg(test)]
pub(crate) async fn fetch_policy_by(
    authority: &str,
    host: &str,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<String, FetchError> {
    let (url, builder) = policy_client(host, addresses, &FetchLimits { timeout, ..POLICY })?;
    let authority = reqwest::Certificate::from_pem(authority.as_bytes()).unwrap();
    policy(builder.tls_certs_only([authority]).build().map_err(FetchError::Client)?, url, POLICY.body).await
}

fn policy_client(
    host: &str,
    addresses: &[SocketAddr],
    limits: &FetchLimits,
) -> Result<(Url, ClientBuilder), FetchError> {
    let (url, builder) = builder(&format!("https://{host}/.well-known/mta-sts.txt"), limits)?;
    // Whoever owns the domain must lead nobody to where its mail may not go.
    Ok((url, builder.resolve_to_addrs(host, addresses).https_only(true)))
}

async fn policy(client: Client, url: Url, max: usize) -> Result<String, FetchError> {
    let response = client.get(url).send().await.map_err(FetchError::Unavailable)?;
    // Neither a redirect nor another success will do.
    if response.status().as_u16() != 200 {
        return Err(FetchError::Status { code: response.status().as_u16() });
    }
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("text/plain")) {
        return Err(FetchError::Type);
    }
    String::from_utf8(body(response, max).await?).map_err(|_| FetchError::NotText)
}

fn uploaded(reply: &str) -> Result<Uploaded, FetchError> {
    let value = |prefix| reply.lines().find_map(|line| line.strip_prefix(prefix)).map(str::trim);
    let message = value("Message:").ok_or(FetchError::Reply)?.to_owned();
    match value("Status:") {
        Some("1") if message == "Accepted." => Ok(Uploaded::Accepted),
        Some("1") => Ok(Uploaded::Waiting { message }),
        Some("0") => Err(FetchError::Refused { message }),
        _ => Err(FetchError::Reply),
    }
}

/// A client for one request. Connections are not kept: requests are a day apart.
fn client(url: &str, limits: &FetchLimits) -> Result<(Url, Client), FetchError> {
    let (parsed, builder) = builder(url, limits)?;
    Ok((parsed, builder.build().map_err(FetchError::Client)?))
}

fn builder(url: &str, limits: &FetchLimits) -> Result<(Url, ClientBuilder), FetchError> {
    let bad = || FetchError::Url { url: url.to_owned() };
    let parsed = Url::parse(url).map_err(|_| bad())?;
    let builder = Client::builder().redirect(Policy::none()).timeout(limits.timeout).no_proxy();
    let builder = match parsed.scheme() {
        // Plain HTTP must also work where no certificates are installed, as in a slim container.
        "http" => builder.tls_backend_preconfigured(tls::config_that_trusts_nobody()),
        // Certificates are checked as the platform does.
        "https" => {
            tls::ensure_process_provider();
            builder
        }
        _ => return Err(bad()),
    };
    Ok((parsed, builder))
}

async fn body(mut response: Response, max: usize) -> Result<Vec<u8>, FetchError> {
    if !response.status().is_success() {
        return Err(FetchError::Status { code: response.status().as_u16() });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(FetchError::Unavailable)? {
        if chunk.len() > max - body.len() {
            return Err(FetchError::TooLong { max });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The octets that gzip begins with (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

fn inflated(body: Vec<u8>, max: usize) -> Result<Vec<u8>, FetchError> {
    if !body.starts_with(&GZIP_MAGIC) {
        return Ok(body);
    }
    let mut text = Vec::new();
    let bound = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(&body[..]).take(bound).read_to_end(&mut text).map_err(|_| FetchError::Gzip)?;
    if text.len() > max { Err(FetchError::TooLong { max }) } else { Ok(text) }
}

/// A form with one field, as browsers encode it.
fn form_encode(name: &str, value: &str) -> String {
    let mut url = form_url();
    url.query_pairs_mut().append_pair(name, value);
    url.query().unwrap_or_default().to_owned()
}

/// The first field called `name` of a form.
pub(crate) fn form_value(form: &str, name: &str) -> Option<String> {
    let mut url = form_url();
    url.set_query(Some(form));
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Forms are encoded as queries of URLs are, so a URL does it.
fn form_url() -> Url {
    Url::parse("http://form.invalid/").expect("a URL")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const LIMITS: FetchLimits = FetchLimits { body: 1000, inflated: 5000, timeout: Duration::from_secs(20) };

    /// A server that gives one answer, and then returns what it was sent.
    async fn server(answer: Vec<u8>) -> (String, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/current.gz", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).await.unwrap();
            request.truncate(len);
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
            request
        });
        (url, task)
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        [&b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"[..], body].concat()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    async fn fetched(answer: Vec<u8>) -> Result<String, FetchError> {
        let (url, task) = server(answer).await;
        let outcome = fetch_directory(&url, &LIMITS).await;
        task.abort();
        outcome
    }

    #[tokio::test]
    async fn a_directory_comes_compressed_or_plain() {
        assert_eq!(fetched(ok(b"[Directory-Info]\n")).await.unwrap(), "[Directory-Info]\n");
        assert_eq!(fetched(ok(&gzip(b"[Directory-Info]\n"))).await.unwrap(), "[Directory-Info]\n");
    }

    #[tokio::test]
    async fn what_is_too_long_or_no_text_is_refused() {
        assert!(matches!(fetched(ok(&[b'x'; 1001])).await, Err(FetchError::TooLong { max: 1000 })));
        assert!(matches!(fetched(ok(&gzip(&[b'x'; 5001]))).await, Err(FetchError::TooLong { max: 5000 })));
        assert_eq!(fetched(ok(&gzip(&[b'x'; 5000]))).await.unwrap().len(), 5000);
        assert!(matches!(fetched(ok(&[0x1f, 0x8b, 0])).await, Err(FetchError::Gzip)));
        assert!(matches!(fetched(ok(&[0xff])).await, Err(FetchError::NotText)));
        let moved = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(fetched(moved.to_vec()).await, Err(FetchError::Status { code: 302 })));
    }

    #[tokio::test]
    async fn policy_is_plain_text_of_one_answer_and_nothing_else() {
        let answered = async |answer: Vec<u8>| {
            let (url, task) = server(answer).await;
            let (url, client) = client(&url, &LIMITS).unwrap();
            let outcome = policy(client, url, LIMITS.body).await;
            task.abort();
            outcome
        };
        let plain = |head: &str, body: &str| format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{body}").into_bytes();
        let good = plain("200 OK\r\ncontent-type: Text/Plain; charset=utf-8", "version: STSv1\n");
        assert_eq!(answered(good).await.unwrap(), "version: STSv1\n");
        let html = answered(plain("200 OK\r\ncontent-type: text/html", "version: STSv1\n")).await;
        assert!(matches!(html, Err(FetchError::Type)), "{html:?}");
        assert!(matches!(answered(ok(b"version: STSv1\n")).await, Err(FetchError::Type)), "it says no type");
        let moved = answered(plain("301 Moved\r\nlocation: http://127.0.0.1/\r\ncontent-type: text/plain", "")).await;
        assert!(matches!(moved, Err(FetchError::Status { code: 301 })), "{moved:?}");
        let other = answered(plain("203 Non-Authoritative\r\ncontent-type: text/plain", "version: STSv1\n")).await;
        assert!(matches!(other, Err(FetchError::Status { code: 203 })), "{other:?}");
        let long = answered(plain("200 OK\r\ncontent-type: text/plain", &"x".repeat(1001))).await;
        assert!(matches!(long, Err(FetchError::TooLong { max: 1000 })), "{long:?}");
    }

    #[tokio::test]
    async fn the_request_tells_nothing_of_the_client() {
        let (url, task) = server(ok(b"x")).await;
        fetch_directory(&url, &LIMITS).await.unwrap();
        let request = String::from_utf8(task.await.unwrap()).unwrap().to_ascii_lowercase();
        let names: Vec<_> =
            request.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
        assert_eq!(names, ["accept", "host"]);
    }

    #[tokio::test]
    async fn only_web_addresses_are_fetched_and_nobody_home_is_unavailable() {
        for url in ["file:///etc/passwd", "nonsense", "ftp://dir.example/"] {
            assert!(matches!(fetch_directory(url, &LIMITS).await, Err(FetchError::Url { .. })), "{url}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let outcome = fetch_directory(&format!("http://{closed}/"), &LIMITS).await;
        assert!(matches!(outcome, Err(FetchError::Unavailable(_))));
        // No panic without a provider for the process, whatever else goes wrong.
        let outcome = fetch_directory(&format!("https://{closed}/"), &LIMITS).await;
        assert!(matches!(outcome, Err(FetchError::Unavailable(_) | FetchError::Client(_))));
    }

    #[test]
    fn the_answer_to_an_upload_has_two_lines() {
        assert_eq!(uploaded("Status: 1\nMessage: Accepted.\n").unwrap(), Uploaded::Accepted);
        let waiting = uploaded("\nStatus: 1\r\nMessage: Later.\r\n").unwrap();
        assert_eq!(waiting, Uploaded::Waiting { message: "Later.".to_owned() });
        let refused = uploaded("Status: 0\nMessage: No.\n").unwrap_err();
        assert!(matches!(refused, FetchError::Refused { message } if message == "No."));
        for reply in ["", "Status: 1\n", "Message: Accepted.\n", "Status: 2\nMessage: x\n", "<html>"] {
            assert!(matches!(uploaded(reply), Err(FetchError::Reply)), "{reply}");
        }
    }

    #[test]
    fn a_form_gives_back_what_was_put_in() {
        let text = "[Server]\nA: 1+2 %&=#\tx\r\n";
        assert_eq!(form_value(&form_encode("desc", text), "desc").as_deref(), Some(text));
        assert_eq!(form_value("other=1&desc=a+b", "desc").as_deref(), Some("a b"));
        assert_eq!(form_value("other=1", "desc"), None);
    }
}
