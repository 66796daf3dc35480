//! A run: entries of one packet key in a file that is written once and never changed.
//!
//! The entries are sorted, so that the file says nothing about the order in which packets came. Of each page the first
//! octets are kept in memory (the fences), so that a look reads one page; of all entries a filter is (`filter`), so that a
//! look for what is not there seldom reads at all. A file is damaged in whole or not at all: its checksum is compared when
//! it is opened, with that in the database, and a log that lacks a part does not open.
//!
//! | page | |
//! |---|---|
//! | the first | magic, version, packet key, entries, blocks of the filter, digest of the entries, checksum; zeros |
//! | then | entries, [`PER_PAGE`] in each; zeros |
//! | then | the filter; zeros |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::filter::{BLOCK_LEN, Filter};
use crate::crypto::{DIGEST_LEN, Digest, sha1};
use crate::store::db::{StoreError, private_folder};
use crate::store::disk::failed;

/// A run. It is called so in the database and in the folder, and no number comes twice while the log is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunId(pub(super) i64);

/// Octets that are read at once: a page of the system's cache.
pub(super) const PAGE_LEN: usize = 4096;
/// Entries in a page; the octets behind them are zero.
pub(super) const PER_PAGE: usize = PAGE_LEN / DIGEST_LEN;
/// Pages that are read and written together where a whole run passes.
const AT_ONCE: usize = 16;
/// Octets after which what was written is made durable. All in the end at once, hundreds of megabytes, would hold up
/// everybody else's commit.
const UNSYNCED: usize = 4 << 20;

const MAGIC: [u8; 8] = *b"MIXRUN\r\n";
const VERSION: u32 = 1;
/// Magic, version, packet key, entries, blocks of the filter, digest of the entries.
const FIELDS_LEN: usize = 8 + 4 + DIGEST_LEN + 8 + 4 + DIGEST_LEN;
const _: () = assert!(FIELDS_LEN + DIGEST_LEN <= PAGE_LEN);

/// The database knows a run that is not in the folder.
pub(super) const MISSING: StoreError = damaged("a run of the replay log is missing");
/// Cut off, or longer than it was.
pub(super) const WRONG_LENGTH: StoreError = damaged("a run of the replay log has the wrong length");
/// Something else lies in its place.
pub(super) const NO_RUN: StoreError = damaged("a file in the place of a run of the replay log is none");
/// A run, and not that of this packet key.
pub(super) const OTHER_KEY: StoreError = damaged("a run of the replay log is another packet key's");
/// The octets are not those that were written.
pub(super) const CHANGED: StoreError = damaged("a run of the replay log is not as it was written");
/// Ours: a run is sorted when it is written.
pub(super) const UNSORTED: StoreError = damaged("a run of the replay log is out of order");

const fn damaged(what: &'static str) -> StoreError {
    StoreError::Corrupt { what }
}

/// The folder of the runs, beside the database: `node.replay` for `node.db`. One log at a time has it.
pub(super) struct Folder {
    path: PathBuf,
    /// Locked; the system lets go of it with the process, however that ends.
    handle: File,
}

impl Folder {
    pub(super) fn open(db: &Path) -> Result<Self, StoreError> {
        let path = db.with_extension("replay");
        private_folder(&path)?;
        if let Some(above) = path.parent() {
            let above = if above == Path::new("") { Path::new(".") } else { above };
            // A commit may rest on the runs, so their folder must be as durable as the database.
            File::open(above).and_then(|above| above.sync_all()).map_err(failed(above))?;
        }
        let handle = File::open(&path).map_err(failed(&path))?;
        match handle.try_lock() {
            Ok(()) => Ok(Self { path, handle }),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(fs::TryLockError::Error(source)) => Err(failed(&path)(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn place(&self, id: RunId) -> PathBuf {
        self.path.join(format!("{}.run", id.0))
    }

    /// The runs that lie here, and what else is called like one.
    pub(super) fn runs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let names = fs::read_dir(&self.path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let paths = names.map_err(failed(&self.path))?.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|end| end == "run")).collect())
    }

    /// Overwrites a run and takes it away. One that is gone already is no error: it was asked for twice.
    pub(super) fn wipe(&self, run: &Path) -> Result<(), StoreError> {
        let found = match run.symlink_metadata() {
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(()),
            found => found.map_err(failed(run))?,
        };
        // What a link leads to is not ours to overwrite.
        if found.is_file() {
            overwrite(run, found.len()).map_err(failed(run))?;
        }
        fs::remove_file(run).map_err(failed(run))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.handle.sync_all().map_err(failed(&self.path))
    }
}

fn overwrite(path: &Path, len: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    io::copy(&mut io::Read::take(io::repeat(0), len), &mut file)?;
    file.sync_all()
}

/// What the database says about a run.
pub(super) struct Registered {
    pub(super) id: RunId,
    pub(super) packet_key: Digest,
    /// Of the whole file.
    pub(super) checksum: Digest,
}

/// A run that can be looked into. It stays so after its file is unlinked, and until it is overwritten.
pub(super) struct Run {
    id: RunId,
    packet_key: Digest,
    entries: u64,
    checksum: Digest,
    /// Of the pages with entries: [`chained`] one by one.
    content: Digest,
    path: PathBuf,
    file: File,
    /// The first octets of each page.
    fences: Vec<u64>,
    filter: Filter,
}

impl Run {
    /// Opens a run and reads all of it.
    ///
    /// # Errors
    /// [`MISSING`], [`WRONG_LENGTH`], [`NO_RUN`], [`OTHER_KEY`], [`CHANGED`], [`UNSORTED`]; what the system says.
    pub(super) fn open(folder: &Folder, registered: &Registered) -> Result<Self, StoreError> {
        let path = folder.place(registered.id);
        let file = match File::open(&path) {
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Err(MISSING),
            file => file.map_err(failed(&path))?,
        };
        let len = file.metadata().map_err(failed(&path))?.len();
        let mut page = [0; PAGE_LEN];
        read_at(&file, &path, 0, &mut page)?;
        let (header, checksum) = Header::parse(&page)?;
        if header.packet_key != registered.packet_key {
            return Err(OTHER_KEY);
        }
        if header.file_len() != Some(len) {
            return Err(WRONG_LENGTH);
        }
        let Header { packet_key, entries, content, .. } = header;
        let (fences, filter) = (Vec::new(), Filter::new(0));
        let mut run = Self { id: registered.id, packet_key, entries, checksum, content, path, file, fences, filter };
        let sorted = run.read_entries()?;
        let filter_digest = run.read_filter(header.filter_octets())?;
        if checksum != header.checksum(&filter_digest) || checksum != registered.checksum {
            return Err(CHANGED);
        }
        // Said last: what has changed on the disk is seldom in order either.
        if sorted { Ok(run) } else { Err(UNSORTED) }
    }

    /// Fills the fences, and says whether all is in order.
    fn read_entries(&mut self) -> Result<bool, StoreError> {
        let mut fences = Vec::with_capacity(usize::try_from(self.pages()).unwrap_or_default());
        let (mut last, mut sorted) = (None, true);
        let mut all = self.entries();
        let mut at = 0;
        while let Some(hash) = all.next()? {
            sorted &= last.is_none_or(|last| last < hash);
            if at % PER_PAGE == 0 {
                fences.push(fence(&hash));
            }
            last = Some(hash);
            at += 1;
        }
        self.fences = fences;
        Ok(sorted)
    }

    /// Fills the filter, and gives its digest.
    fn read_filter(&mut self, len: usize) -> Result<Digest, StoreError> {
        let mut octets = vec![0; len.next_multiple_of(PAGE_LEN)];
        read_at(&self.file, &self.path, 1 + self.pages(), &mut octets)?;
        let (pages, _) = octets.as_chunks::<PAGE_LEN>();
        let digest = pages.iter().fold(NOTHING, |before, page| chained(&before, page));
        self.filter = Filter::from_octets(octets.get(..len).unwrap_or_default());
        Ok(digest)
    }

    pub(super) fn id(&self) -> RunId {
        self.id
    }

    pub(super) fn packet_key(&self) -> &Digest {
        &self.packet_key
    }

    pub(super) fn checksum(&self) -> &Digest {
        &self.checksum
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> u64 {
        self.entries
    }

    /// Blocks that its filter has in memory.
    pub(super) fn blocks(&self) -> usize {
        self.filter.blocks()
    }

    /// Whether an entry is there.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn holds(&self, hash: &Digest) -> Result<bool, StoreError> {
        if !self.filter.may_hold(hash) {
            return Ok(false);
        }
        // The page that begins below it, and pages that begin with the same octets: seldom one, but whoever makes packets
        // can grind hashes, and they must not cost more than the logarithm.
        let mut low = self.fences.partition_point(|other| *other < fence(hash)).saturating_sub(1);
        let mut high = self.fences.partition_point(|other| *other <= fence(hash));
        let mut page = [0; PAGE_LEN];
        while low < high {
            let middle = low + (high - low) / 2;
            read_at(&self.file, &self.path, 1 + middle as u64, &mut page)?;
            let entries = self.entries_of(middle as u64, &page);
            if entries.first().is_none_or(|first| hash.0 < *first) {
                high = middle;
            } else if entries.last().is_some_and(|last| *last < hash.0) {
                low = middle + 1;
            } else {
                return Ok(entries.binary_search(&hash.0).is_ok());
            }
        }
        Ok(false)
    }

    /// All entries in order, a few pages in memory at a time.
    pub(super) fn entries(&self) -> Entries<'_> {
        Entries { run: self, buffer: vec![0; AT_ONCE * PAGE_LEN], page: 0, in_buffer: 0, entry: 0, content: NOTHING }
    }

    fn pages(&self) -> u64 {
        self.entries.div_ceil(PER_PAGE as u64)
    }

    fn entries_of<'p>(&self, page: u64, octets: &'p [u8]) -> &'p [[u8; DIGEST_LEN]] {
        let left = self.entries.saturating_sub(page * PER_PAGE as u64);
        let held = usize::try_from(left).unwrap_or(PER_PAGE).min(PER_PAGE);
        octets.as_chunks().0.get(..held).unwrap_or_default()
    }
}

/// Reads whole pages.
fn read_at(file: &File, path: &Path, page: u64, octets: &mut [u8]) -> Result<(), StoreError> {
    file.read_exact_at(octets, page * PAGE_LEN as u64).map_err(|source| match source.kind() {
        ErrorKind::UnexpectedEof => WRONG_LENGTH,
        _ => failed(path)(source),
    })
}

/// The entries of a run as they pass.
pub(super) struct Entries<'r> {
    run: &'r Run,
    buffer: Vec<u8>,
    /// The page that is read next, of those with entries.
    page: u64,
    /// Pages in the buffer.
    in_buffer: usize,
    /// Of the buffer, which entry comes next.
    entry: usize,
    content: Digest,
}

impl Entries<'_> {
    /// The next entry. `None` only when all that was there was as it was written: what has changed on the disk since the
    /// run was opened must not become part of another.
    ///
    /// # Errors
    /// [`CHANGED`]; what the system says.
    pub(super) fn next(&mut self) -> Result<Option<Digest>, StoreError> {
        loop {
            let first = self.page - self.in_buffer as u64;
            let (page, entry) = (self.entry / PER_PAGE, self.entry % PER_PAGE);
            let octets = self.buffer.as_chunks::<PAGE_LEN>().0.get(page).filter(|_| page < self.in_buffer);
            if let Some(octets) = octets
                && let Some(hash) = self.run.entries_of(first + page as u64, octets).get(entry)
            {
                self.entry += 1;
                return Ok(Some(Digest(*hash)));
            }
            if self.page == self.run.pages() {
                return if self.content == self.run.content { Ok(None) } else { Err(CHANGED) };
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), StoreError> {
        let left = usize::try_from(self.run.pages() - self.page).unwrap_or(AT_ONCE);
        self.in_buffer = left.min(AT_ONCE);
        let octets = self.buffer.get_mut(..self.in_buffer * PAGE_LEN).unwrap_or_default();
        read_at(&self.run.file, &self.run.path, 1 + self.page, octets)?;
        self.content =
            octets.as_chunks::<PAGE_LEN>().0.iter().fold(self.content, |before, page| chained(&before, page));
        self.page += self.in_buffer as u64;
        self.entry = 0;
        Ok(())
    }
}

/// Writes a run. Unless it is finished, what was written is overwritten and taken away.
pub(super) struct Writer<'f> {
    unfinished: Unfinished<'f>,
    packet_key: Digest,
    id: RunId,
    file: File,
    /// What is not written out; in whole pages but for the last.
    buffer: Vec<u8>,
    /// Octets written out and not made durable.
    unsynced: usize,
    last: Option<Digest>,
    entries: u64,
    /// Of the pages that are written out: those with entries, then those of the filter.
    content: Digest,
    fences: Vec<u64>,
    filter: Filter,
}

/// A file that is in the way when it is not finished.
struct Unfinished<'f> {
    folder: &'f Folder,
    path: PathBuf,
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // Why it was given up is said already; what cannot be taken away now is at the next start.
            let _ = self.folder.wipe(&self.path);
        }
    }
}

impl<'f> Writer<'f> {
    /// Begins a file that is not there yet. The filter is empty.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn create(
        folder: &'f Folder,
        id: RunId,
        packet_key: Digest,
        filter: Filter,
    ) -> Result<Self, StoreError> {
        let path = folder.place(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let mut writer = Self {
            file: file.map_err(failed(&path))?,
            unfinished: Unfinished { folder, path, finished: false },
            packet_key,
            id,
            buffer: Vec::with_capacity(AT_ONCE * PAGE_LEN),
            unsynced: 0,
            last: None,
            entries: 0,
            content: NOTHING,
            fences: Vec::new(),
            filter,
        };
        // The header comes last: a file that was not finished is no run.
        writer.file.write_all(&[0; PAGE_LEN]).map_err(failed(&writer.unfinished.path))?;
        Ok(writer)
    }

    /// Writes the next entry, which must be greater than the last.
    ///
    /// # Errors
    /// [`UNSORTED`]; what the system says.
    pub(super) fn push(&mut self, hash: &Digest) -> Result<(), StoreError> {
        if self.last.is_some_and(|last| last >= *hash) {
            return Err(UNSORTED);
        }
        self.last = Some(*hash);
        if self.entries.is_multiple_of(PER_PAGE as u64) {
            self.end_page()?;
            self.fences.push(fence(hash));
        }
        self.buffer.extend_from_slice(&hash.0);
        self.filter.add(hash);
        self.entries += 1;
        Ok(())
    }

    /// Makes the run durable.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn finish(mut self) -> Result<Run, StoreError> {
        self.end_page()?;
        self.write_out()?;
        let content = std::mem::replace(&mut self.content, NOTHING);
        let filter = std::mem::replace(&mut self.filter, Filter::new(0));
        for block in filter.octets() {
            self.buffer.extend_from_slice(&block);
            if self.buffer.len() == AT_ONCE * PAGE_LEN {
                self.write_out()?;
            }
        }
        self.end_page()?;
        self.write_out()?;
        let Self { mut unfinished, packet_key, id, file, entries, content: filter_digest, fences, .. } = self;
        let blocks = u32::try_from(filter.blocks()).expect("no more than MAX_BLOCKS");
        let header = Header { packet_key, entries, blocks, content };
        let checksum = header.checksum(&filter_digest);
        let written = file.write_all_at(&header.page(&checksum), 0).and_then(|()| file.sync_all());
        written.map_err(failed(&unfinished.path))?;
        unfinished.folder.sync()?;
        unfinished.finished = true;
        let path = unfinished.path.clone();
        Ok(Run { id, packet_key, entries, checksum, content, path, file, fences, filter })
    }

    /// Fills the page up, and writes out what has come together.
    fn end_page(&mut self) -> Result<(), StoreError> {
        self.buffer.resize(self.buffer.len().next_multiple_of(PAGE_LEN), 0);
        if self.buffer.len() == AT_ONCE * PAGE_LEN { self.write_out() } else { Ok(()) }
    }

    /// Writes out whole pages.
    fn write_out(&mut self) -> Result<(), StoreError> {
        let (pages, _) = self.buffer.as_chunks::<PAGE_LEN>();
        self.content = pages.iter().fold(self.content, |before, page| chained(&before, page));
        let written = self.file.write_all(&self.buffer);
        written.map_err(failed(&self.unfinished.path))?;
        self.unsynced += self.buffer.len();
        self.buffer.clear();
        if self.unsynced >= UNSYNCED {
            self.file.sync_data().map_err(failed(&self.unfinished.path))?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// What a run says of itself.
struct Header {
    packet_key: Digest,
    entries: u64,
    blocks: u32,
    /// Of the pages with entries.
    content: Digest,
}

impl Header {
    /// The header in a page, and the checksum of the file.
    fn parse(page: &[u8; PAGE_LEN]) -> Result<(Self, Digest), StoreError> {
        let (magic, rest) = page.split_first_chunk().ok_or(NO_RUN)?;
        let (version, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        if *magic != MAGIC || u32::from_be_bytes(*version) != VERSION {
            return Err(NO_RUN);
        }
        let (packet_key, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        let (entries, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        let (blocks, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        let (content, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        let (checksum, rest) = rest.split_first_chunk().ok_or(NO_RUN)?;
        if rest.iter().any(|octet| *octet != 0) {
            return Err(CHANGED);
        }
        let header = Self {
            packet_key: Digest(*packet_key),
            entries: u64::from_be_bytes(*entries),
            blocks: u32::from_be_bytes(*blocks),
            content: Digest(*content),
        };
        Ok((header, Digest(*checksum)))
    }

    fn fields(&self) -> [u8; FIELDS_LEN] {
        let mut fields = [0; FIELDS_LEN];
        let parts: [&[u8]; 6] = [
            &MAGIC,
            &VERSION.to_be_bytes(),
            &self.packet_key.0,
            &self.entries.to_be_bytes(),
            &self.blocks.to_be_bytes(),
            &self.content.0,
        ];
        fields.iter_mut().zip(parts.into_iter().flatten()).for_each(|(place, octet)| *place = *octet);
        fields
    }

    fn page(&self, checksum: &Digest) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        let octets = self.fields().into_iter().chain(checksum.0);
        page.iter_mut().zip(octets).for_each(|(place, octet)| *place = octet);
        page
    }

    fn checksum(&self, filter: &Digest) -> Digest {
        sha1(&[&self.fields(), &filter.0])
    }

    fn filter_octets(&self) -> usize {
        usize::try_from(self.blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK_LEN)
    }

    /// `None` for what no file can have.
    fn file_len(&self) -> Option<u64> {
        let filter = u64::from(self.blocks).checked_mul(BLOCK_LEN as u64)?.div_ceil(PAGE_LEN as u64);
        let pages = self.entries.div_ceil(PER_PAGE as u64).checked_add(1 + filter)?;
        pages.checked_mul(PAGE_LEN as u64)
    }
}

/// The digest of no pages.
const NOTHING: Digest = Digest([0; DIGEST_LEN]);

/// The digest of pages, and one more.
fn chained(before: &Digest, page: &[u8]) -> Digest {
    sha1(&[&before.0, page])
}

/// The first octets, as a number of the same order.
fn fence(hash: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests;
