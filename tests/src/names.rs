//! A name service on loopback, of networks that a test puts together itself (RFC 1035): what it answers stands in a table.
//!
//! It speaks UDP, and TCP to those whose answer is too long for that. It shares no line with the resolver under test.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Octets of a message by UDP, at most (RFC 1035 4.2.1): whoever is asked need not send more to whom can take it.
const UDP_MAX: usize = 512;
/// Octets before the first question (RFC 1035 4.1.1).
const HEADER_LEN: usize = 12;
/// A response of who answers for the name and looks further, to a question that asked for it.
const RESPONSE: u16 = 0x8580;
/// Set where the answers did not fit.
const TRUNCATED: u16 = 0x0200;
/// There is no such name.
const NO_SUCH_NAME: u16 = 3;
/// The name of the question, where it stands in each response (RFC 1035 4.1.4).
const OF_THE_QUESTION: u16 = 0xC000 | 12;
/// The class of the Internet.
const INTERNET: u16 = 1;
/// Record type of addresses.
const A: u16 = 1;
/// Record type of those who take mail.
const MX: u16 = 15;

/// What there is at a name.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// A server that takes its mail; the root, `.`, is nobody (RFC 7505).
    Mx(u16, &'static str),
    /// An address.
    Address(Ipv4Addr),
}

/// Names in lower case with what is there. A name that is not there does not exist.
pub type Zone = Vec<(String, Record)>;

/// A server. Its threads end with the test.
#[derive(Clone, Debug)]
pub struct Names {
    /// Where it is asked.
    pub address: SocketAddr,
    by_tcp: Arc<AtomicUsize>,
}

impl Names {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(zone: Zone) -> Self {
        let (udp, tcp) = sockets();
        let names = Self { address: udp.local_addr().unwrap(), by_tcp: Arc::default() };
        let (zone, by_tcp) = (Arc::new(zone), Arc::clone(&names.by_tcp));
        let of_tcp = Arc::clone(&zone);
        thread::spawn(move || {
            let mut octets = [0; UDP_MAX];
            while let Ok((len, from)) = udp.recv_from(&mut octets) {
                if let Some(response) = octets.get(..len).and_then(|question| respond(&zone, question, UDP_MAX)) {
                    // Whoever is gone asks no more.
                    let _ = udp.send_to(&response, from);
                }
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let (zone, by_tcp) = (Arc::clone(&of_tcp), Arc::clone(&by_tcp));
                // A client that breaks off does so.
                thread::spawn(move || serve(stream, &zone, &by_tcp));
            }
        });
        names
    }

    /// How many questions came by TCP.
    pub fn asked_by_tcp(&self) -> usize {
        self.by_tcp.load(Ordering::Relaxed)
    }
}

/// Both at one port.
fn sockets() -> (UdpSocket, TcpListener) {
    let sockets = || {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let tcp = TcpListener::bind(udp.local_addr().ok()?).ok()?;
        Some((udp, tcp))
    };
    // That of one may be another's of the other kind.
    (0..100).find_map(|_| sockets()).unwrap()
}

fn serve(mut stream: TcpStream, zone: &Zone, by_tcp: &AtomicUsize) -> io::Result<()> {
    loop {
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut question = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut question)?;
        by_tcp.fetch_add(1, Ordering::Relaxed);
        let response = respond(zone, &question, u16::MAX.into()).ok_or(io::ErrorKind::InvalidData)?;
        let len = u16::try_from(response.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        stream.write_all(&[&len.to_be_bytes()[..], &response].concat())?;
    }
}

/// The response to a question, of so many octets at most; `None` when it is none that anybody asks.
fn respond(zone: &Zone, question: &[u8], room: usize) -> Option<Vec<u8>> {
    let (header, rest) = question.split_first_chunk::<HEADER_LEN>()?;
    let (wanted, len) = name(rest)?;
    let kind = u16::from_be_bytes(*rest.get(len..)?.first_chunk()?);
    let asked = rest.get(..len + 4)?;
    let there: Vec<Record> = zone.iter().filter(|(at, _)| *at == wanted).map(|(_, record)| *record).collect();
    let answers: Vec<Vec<u8>> = there.iter().filter_map(|record| answer(*record, kind)).collect();
    let fits = HEADER_LEN + asked.len() + answers.iter().map(Vec::len).sum::<usize>() <= room;
    let code = if there.is_empty() { NO_SUCH_NAME } else { 0 };
    let (flags, answers) = if fits { (RESPONSE | code, answers) } else { (RESPONSE | TRUNCATED, Vec::new()) };
    let mut response = header.get(..2)?.to_vec();
    for number in [flags, 1, u16::try_from(answers.len()).ok()?, 0, 0] {
        response.extend(number.to_be_bytes());
    }
    response.extend(asked);
    response.extend(answers.concat());
    Some(response)
}

/// The name that a question begins with, and its length there.
fn name(mut octets: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut len) = (Vec::new(), 1);
    loop {
        let (first, rest) = octets.split_first()?;
        if *first == 0 {
            return Some((labels.join("."), len));
        }
        let (label, rest) = rest.split_at_checked((*first).into())?;
        labels.push(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
        (octets, len) = (rest, len + 1 + label.len());
    }
}

/// A record as it stands in a response, if it is of the kind that was asked for.
fn answer(record: Record, kind: u16) -> Option<Vec<u8>> {
    let data = match record {
        Record::Mx(preference, host) if kind == MX => [&preference.to_be_bytes()[..], &written(host)].concat(),
        Record::Address(address) if kind == A => address.octets().to_vec(),
        _ => return None,
    };
    let mut answer = Vec::new();
    // A minute of life, in two halves of its number.
    for number in [OF_THE_QUESTION, kind, INTERNET, 0, 60, u16::try_from(data.len()).ok()?] {
        answer.extend(number.to_be_bytes());
    }
    answer.extend(data);
    Some(answer)
}

/// A name as it stands in a message.
fn written(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut octets: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).expect("a label has 63 octets")], label.as_bytes()].concat())
        .collect();
    octets.push(0);
    octets
}
