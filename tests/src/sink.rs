//! A mail server that keeps what it gets in memory: the world outside of networks that a test puts together itself.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A server that takes everything. Its threads end with the test.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    mails: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Sink {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts it there.
    ///
    /// # Panics
    /// When another is there.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let sink = Self { address: listener.local_addr().unwrap(), mails: Arc::default() };
        let mails = Arc::clone(&sink.mails);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mails = Arc::clone(&mails);
                // A client that breaks off does so.
                thread::spawn(move || serve(stream, &mails));
            }
        });
        sink
    }

    /// The mails so far.
    ///
    /// # Panics
    /// When one of its threads has.
    pub fn mails(&self) -> Vec<Vec<u8>> {
        self.mails.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, mails: &Mutex<Vec<Vec<u8>>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let say = |stream: &mut BufReader<TcpStream>, line: &[u8]| stream.get_mut().write_all(line);
    say(&mut stream, b"220 sink.example\r\n")?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        match line.trim_end().to_ascii_uppercase().as_str() {
            "DATA" => {
                say(&mut stream, b"354 go on\r\n")?;
                let mail = data(&mut stream)?;
                mails.lock().map_err(|_| io::ErrorKind::Other)?.push(mail);
                say(&mut stream, b"250 taken\r\n")?;
            }
            "QUIT" => return say(&mut stream, b"221 bye\r\n"),
            _ => say(&mut stream, b"250 ok\r\n")?,
        }
        line.clear();
    }
    Ok(())
}

fn data(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut mail = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.strip_prefix(b".") {
            Some(b"\r\n") => return Ok(mail),
            Some(undotted) => mail.extend_from_slice(undotted),
            None => mail.extend_from_slice(&line),
        }
    }
}
