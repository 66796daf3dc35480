//! A name service on loopback for tests: what it answers stands in a table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, MX, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

/// What there is at a name.
#[derive(Clone, Debug)]
pub(crate) enum At {
    /// A server that takes its mail.
    Mx(u16, &'static str),
    /// An address.
    Address(IpAddr),
    /// A text, in pieces.
    Text(&'static [&'static str]),
    /// Another name.
    Alias(&'static str),
    /// Nothing, though the name is there.
    Nothing,
    /// Trouble: the name service has none to give.
    Fails,
    /// No answer, ever.
    Hangs,
}

/// Names in lower case with what is there.
pub(crate) type Zone = Vec<(&'static str, At)>;

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).unwrap()
}

/// Serves a zone; gives where, and how often each name was asked for.
pub(crate) async fn name_server(zone: Zone) -> (SocketAddr, Arc<Mutex<BTreeMap<String, usize>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let counts = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut octets = [0; 4096];
        while let Ok((len, from)) = socket.recv_from(&mut octets).await {
            let question = Message::from_vec(&octets[..len]).unwrap();
            let query = question.queries.first().unwrap();
            let wanted = query.name().to_ascii().to_ascii_lowercase();
            *counts.lock().unwrap().entry(wanted.trim_end_matches('.').to_owned()).or_default() += 1;
            if let Some(answer) = answer(&zone, &question) {
                let _ = socket.send_to(&answer.to_vec().unwrap(), from).await;
            }
        }
    });
    (address, asked)
}

fn answer(zone: &Zone, question: &Message) -> Option<Message> {
    let query = question.queries.first().unwrap();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    let mut wanted = query.name().to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned();
    let mut owner = query.name().clone();
    // An alias and what it leads to come in one answer, as from a server that looks further.
    for _ in 0..4 {
        let there: Vec<&At> = zone.iter().filter(|(at, _)| *at == wanted).map(|(_, at)| at).collect();
        if there.is_empty() {
            answer.metadata.response_code = ResponseCode::NXDomain;
            break;
        }
        let mut alias = None;
        for at in there {
            let data = match (at, query.query_type()) {
                (At::Mx(preference, host), RecordType::MX) => RData::MX(MX::new(*preference, name(host))),
                (At::Address(IpAddr::V4(address)), RecordType::A) => RData::A((*address).into()),
                (At::Address(IpAddr::V6(address)), RecordType::AAAA) => RData::AAAA((*address).into()),
                (At::Text(pieces), RecordType::TXT) => {
                    RData::TXT(TXT::new(pieces.iter().map(|piece| (*piece).to_owned()).collect()))
                }
                (At::Alias(to), _) => {
                    alias = Some(*to);
                    RData::CNAME(CNAME(name(to)))
                }
                (At::Fails, _) => {
                    answer.metadata.response_code = ResponseCode::ServFail;
                    continue;
                }
                (At::Hangs, _) => return None,
                _ => continue,
            };
            answer.add_answer(Record::from_rdata(owner.clone(), 60, data));
        }
        let Some(alias) = alias else { break };
        (wanted, owner) = (alias.to_owned(), name(alias));
    }
    Some(answer)
}
