//! What the allocator does with memory that packets leave.

/// Packets that come and go at a time, in one thread: twice a worker's batch.
const KEPT: usize = 2 * 1024 * 1024;

/// Lets the allocator keep what packets leave for those that follow. glibc gives the end of its heaps back to the system as
/// soon as 128 KB of it are free, four packets, and has the system fill it with zeros for the next four: a twentieth of the
/// time that a mix has. It learns from what is freed: after a block of this size it keeps twice as much in each
/// heap (mallopt(3), `M_MMAP_THRESHOLD`). Other allocators are not concerned. Once in a process is enough.
pub fn keep_freed() {
    // Not touched, so that no memory is taken for it; and not to be optimised away.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}
