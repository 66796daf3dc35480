//! The outside world of the demonstration: a mail server that keeps whatever the exits deliver, in a Maildir.
//!
//! On mailin-embedded, which is enough where there are no size limits and no shutdown to be had.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mailin_embedded::response::{INTERNAL_ERROR, OK};
use mailin_embedded::{Handler, Response, Server};

/// Connections at a time. The server gives each a thread; exits hold one for a mail or two.
const THREADS: u32 = 16;

/// A mail server that accepts everything.
#[derive(Debug)]
pub(crate) struct Outside {
    /// Where it listens.
    pub(crate) smtp: SocketAddr,
    /// Where it keeps what it gets.
    pub(crate) maildir: PathBuf,
}

impl Outside {
    /// Starts serving on `listener`. Serves until the process ends: the server has no other end.
    ///
    /// # Errors
    /// When the Maildir cannot be made.
    pub(crate) fn start(listener: TcpListener, maildir: &Path) -> io::Result<Self> {
        for folder in ["tmp", "new", "cur"] {
            fs::create_dir_all(maildir.join(folder))?;
        }
        let smtp = listener.local_addr()?;
        let mailbox = Mailbox { maildir: maildir.to_owned(), names: Arc::default(), file: None };
        thread::Builder::new().name("outside-world".into()).spawn(move || {
            let mut server = Server::new(mailbox);
            server.with_name("outside.example").with_num_threads(THREADS).with_tcp_listener(listener);
            if let Err(e) = server.serve() {
                tracing::error!(error = %e, "the outside world has stopped");
            }
        })?;
        Ok(Self { smtp, maildir: maildir.to_owned() })
    }

    /// The mails that have arrived, as files, oldest first.
    pub(crate) fn arrived(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.maildir.join("new"))?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort();
        Ok(files)
    }
}

/// What one connection delivers to.
#[derive(Clone)]
struct Mailbox {
    maildir: PathBuf,
    names: Arc<AtomicU64>,
    file: Option<Arc<(PathBuf, fs::File)>>,
}

impl Mailbox {
    fn begin(&mut self) -> io::Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        // Sorted by name is sorted by arrival; the process id keeps two runs on one folder apart.
        let name =
            format!("{:010}.{:09}_{number:06}.{}.outside", now.as_secs(), now.subsec_nanos(), std::process::id());
        let path = self.maildir.join("tmp").join(&name);
        let file = fs::File::create(&path)?;
        self.file = Some(Arc::new((path, file)));
        Ok(())
    }

    /// On disk before the exit is told so.
    fn finish(&mut self) -> io::Result<()> {
        let file = self.file.take().ok_or(io::ErrorKind::NotFound)?;
        let (path, file) = &*file;
        file.sync_all()?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        fs::rename(path, self.maildir.join("new").join(name))?;
        fs::File::open(self.maildir.join("new"))?.sync_all()
    }
}

impl Handler for Mailbox {
    fn data_start(&mut self, _domain: &str, _from: &str, _is8bit: bool, _to: &[String]) -> Response {
        match self.begin() {
            Ok(()) => OK,
            Err(_) => INTERNAL_ERROR,
        }
    }

    fn data(&mut self, octets: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => (&file.1).write_all(octets),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn data_end(&mut self) -> Response {
        match self.finish() {
            Ok(()) => OK,
            Err(_) => INTERNAL_ERROR,
        }
    }
}
