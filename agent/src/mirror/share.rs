//! The memory that all clients of the mirror share for pieces of blobs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Memory for pieces, for all clients together, roughly: each client holds two pieces, one that is read and one that is
/// being sent, and who stands still keeps the size of when they were read.
const PIECES_BYTES: usize = 8 << 20;
/// Every client gets pieces of at least this many bytes. The mirror has 256 connections, so about 32 MiB at most.
const LEAST_BYTES: usize = 64 << 10;
/// Larger pieces than this make nothing faster.
const MOST_BYTES: usize = 512 << 10;

/// The clients that blobs are on their way to.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(Arc<AtomicUsize>);

/// One client's share. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Share(Clients);

impl Clients {
    /// One client more.
    pub(super) fn enter(&self) -> Share {
        self.0.fetch_add(1, Ordering::Relaxed);
        Share(self.clone())
    }
}

impl Share {
    /// Bytes of the next piece. The fewer clients there are, the larger it is: one client gets a blob twice as fast by
    /// pieces of 512 KiB as by pieces of 64 KiB.
    pub(super) fn piece_bytes(&self) -> usize {
        let clients = self.0.0.load(Ordering::Relaxed).max(1);
        (PIECES_BYTES / 2 / clients).clamp(LEAST_BYTES, MOST_BYTES)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_get_smaller_with_each_client_and_larger_when_one_leaves() {
        let clients = Clients::default();
        let first = clients.enter();
        assert_eq!(first.piece_bytes(), MOST_BYTES);
        let others: Vec<_> = (1..32).map(|_| clients.enter()).collect();
        assert_eq!(first.piece_bytes(), 128 << 10);
        let more: Vec<_> = (32..256).map(|_| clients.enter()).collect();
        assert_eq!(first.piece_bytes(), LEAST_BYTES);
        drop((others, more));
        assert_eq!(first.piece_bytes(), MOST_BYTES);
    }

    #[test]
    fn up_to_the_least_piece_all_clients_fit_into_their_memory() {
        let clients = Clients::default();
        let mut shares = Vec::new();
        while shares.len() < PIECES_BYTES / 2 / LEAST_BYTES {
            shares.push(clients.enter());
            let pieces: usize = shares.iter().map(|share| 2 * share.piece_bytes()).sum();
            assert!(pieces <= PIECES_BYTES, "{}", shares.len());
        }
    }
}
