//! A mail server that forgives nothing: it keeps each octet that it hears, by conversation, and ends a mail at CRLF.CRLF alone.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was said in one conversation.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The commands, each without the CRLF that ends it.
    pub commands: Vec<Vec<u8>>,
    /// The mails as they came, their dots doubled, up to and with the CRLF before the last dot.
    pub mails: Vec<Vec<u8>>,
}

/// A server. Its threads end with the test.
#[derive(Clone, Debug)]
pub struct Strict {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Strict {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let strict = Self { address: listener.local_addr().unwrap(), heard: Arc::default() };
        let heard = Arc::clone(&strict.heard);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut said = Heard::default();
                // However it ends: what was said counts.
                let _ = converse(stream, &mut said);
                heard.lock().unwrap().push(said);
            }
        });
        strict
    }

    /// The conversations that are over, in their order.
    ///
    /// # Panics
    /// When its thread has.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

fn converse(stream: TcpStream, heard: &mut Heard) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let say = |stream: &mut BufReader<TcpStream>, line: &str| stream.get_mut().write_all(line.as_bytes());
    say(&mut stream, "220 strict.example\r\n")?;
    loop {
        let command = up_to(&mut stream, b"\r\n")?;
        let command = command.strip_suffix(b"\r\n").unwrap_or_default().to_vec();
        let verb = command.split(|octet| *octet == b' ').next().unwrap_or_default().to_ascii_uppercase();
        heard.commands.push(command);
        match verb.as_slice() {
            b"DATA" => {
                say(&mut stream, "354 go on\r\n")?;
                // The CRLF of the command counts: a mail may have no line at all.
                let mut mail = b"\r\n".to_vec();
                while !mail.ends_with(b"\r\n.\r\n") {
                    mail.extend(up_to(&mut stream, b"\r\n")?);
                }
                mail.truncate(mail.len() - 3);
                heard.mails.push(mail.split_off(2.min(mail.len())));
                say(&mut stream, "250 taken\r\n")?;
            }
            b"QUIT" => return say(&mut stream, "221 bye\r\n"),
            b"EHLO" | b"MAIL" | b"RCPT" | b"RSET" => say(&mut stream, "250 ok\r\n")?,
            _ => say(&mut stream, "500 what?\r\n")?,
        }
    }
}

fn up_to(stream: &mut BufReader<TcpStream>, end: &[u8]) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(end) {
        if stream.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(line)
}
