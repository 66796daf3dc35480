//! The statistics of the node for Prometheus, on loopback alone.
//!
//! Nothing is said here that the file of reports would not say: the same figures, rounded the same way, which change at
//! the same times (`mix::node::stats`). A counter that moved with each packet would tell every user of this machine when
//! packets come.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mix::net::guard::{Bounds, Guard};
use mix::node::NodeControl;
use mix::node::stats::Report;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// The text format, version 0.0.4.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every user of this machine can connect, and the file descriptors are the node's. One who asks has one connection, and
/// its answer is a page; all come from one host.
const BOUNDS: Bounds =
    Bounds { connections: 8, per_host: 8, lifetime: Duration::from_secs(10), silence: Duration::from_secs(10) };

/// Serves `GET /metrics` until stopped.
pub(crate) async fn serve(listener: TcpListener, node: NodeControl, stop: CancellationToken) {
    serve_by(Guard::new(listener, BOUNDS), Router::new().route("/metrics", get(metrics)).with_state(node), stop).await;
}

async fn serve_by(guard: Guard, router: Router, stop: CancellationToken) {
    let server = axum::serve(guard, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    // A client that holds its connection open must not hold up the end.
    let outcome = stop.run_until_cancelled(server.into_future()).await;
    if let Some(Err(e)) = outcome {
        error!(error = %e, "the metrics are not served any more");
    }
}

async fn metrics(State(node): State<NodeControl>, headers: HeaderMap) -> Response {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_this_machine) {
        return (StatusCode::FORBIDDEN, "ask for this machine by its address\n").into_response();
    }
    match node.report() {
        Some(report) => ([(CONTENT_TYPE, TEXT)], text(&report)).into_response(),
        None => (StatusCode::NOT_FOUND, "node.stats.enabled is false\n").into_response(),
    }
}

/// Whether a browser that sends this asks for loopback itself, and not for a stranger's name that leads there.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for (name, figure) in &report.figures {
        // Gauges: a figure begins anew with each interval. Writing into a text does not fail.
        let _ = writeln!(
            text,
            "# HELP mixgate_node_{name} In this interval so far, rounded up to thousands.\n\
             # TYPE mixgate_node_{name} gauge\n\
             mixgate_node_{name} {figure}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn figures_are_in_the_text_format_and_nothing_else_is() {
        let since = SystemTime::UNIX_EPOCH;
        let report = Report { since, until: since, figures: vec![("received", 3000), ("mixed", 1000)] };
        let text = text(&report);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE mixgate_node_received gauge",
                "mixgate_node_received 3000",
                "# TYPE mixgate_node_mixed gauge",
                "mixgate_node_mixed 1000",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_few_and_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/metrics", get(|| async { "figures" }));
        let stop = CancellationToken::new();
        tokio::spawn(serve_by(Guard::new(listener, BOUNDS), router, stop.clone()));
        let mut idle = Vec::new();
        for _ in 0..BOUNDS.connections {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut one_more = TcpStream::connect(address).await.unwrap();
        // Closed at once, while the others have their time.
        let began = Instant::now();
        assert_eq!(one_more.read(&mut [0]).await.unwrap_or(0), 0);
        assert!(began.elapsed() < BOUNDS.silence);
        for mut connection in idle {
            assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0);
        }
        assert!(began.elapsed() < BOUNDS.lifetime + Duration::from_secs(1));
        let mut asks = TcpStream::connect(address).await.unwrap();
        asks.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asks.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("figures"), "{answer}");
        stop.cancel();
    }

    #[test]
    fn strangers_name_for_loopback_is_refused() {
        for host in ["127.0.0.1:9148", "127.0.0.1", "localhost:9148", "[::1]:9148", "LocalHost"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["evil.example:9148", "10.0.0.1:9148", "", "localhost.evil.example", "[2001:db8::1]:9148"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
