//! A made-up registry that holds one blob, and acts by a script.

use std::{collections::VecDeque, ops::Range, sync::Mutex};

use bytes::Bytes;

use super::super::*;
use crate::lock::lock;

pub(super) const PIECE: usize = 100_000;

/// What happens once a connection has given this many bytes.
pub(super) type Meanwhile = (usize, Box<dyn FnOnce() + Send>);

/// The registry's behaviour on one connection.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Refuse(OriginError),
    Settings,
    /// It gives this many bytes, and breaks off.
    Cut(usize),
    /// It gives other bytes.
    Lie(Bytes),
}

/// A registry that holds one blob, and acts by a script. Then it does what it should.
pub(super) struct Registry {
    blob: Bytes,
    script: Mutex<VecDeque<Act>>,
    /// It gives blobs from their beginning only.
    pub(super) no_parts: bool,
    /// It gives parts to the blob's end only.
    pub(super) no_ends: bool,
    /// Happens before each piece, once.
    pub(super) meanwhile: Mutex<Option<Meanwhile>>,
    /// The questions to the registry: with which access, and for which bytes.
    pub(super) asked: Mutex<Vec<(Access, Range<u64>)>>,
}

pub(super) struct Given {
    rest: Bytes,
    error: Option<OriginError>,
    from_beginning: bool,
    end: u64,
    skip: usize,
    received: u64,
    meanwhile: Option<Meanwhile>,
}

impl Registry {
    pub(super) fn new(blob: &[u8], script: impl IntoIterator<Item = Act>) -> Self {
        Self {
            blob: Bytes::copy_from_slice(blob),
            script: Mutex::new(script.into_iter().collect()),
            no_parts: false,
            no_ends: false,
            meanwhile: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    pub(super) fn asked(&self) -> Vec<u64> {
        self.parts().iter().map(|part| part.start).collect()
    }

    pub(super) fn parts(&self) -> Vec<Range<u64>> {
        let asked = lock(&self.asked);
        asked.iter().map(|(_, part)| part.clone()).collect()
    }
}

impl Source for Registry {
    type Pieces = Given;

    async fn open(&self, part: &Part<'_>, access: &Access) -> Result<Given, OpenError> {
        lock(&self.asked).push((access.clone(), part.from..part.end));
        let act = lock(&self.script).pop_front();
        let end = match self.no_parts || self.no_ends {
            true => part.size,
            false => part.end,
        };
        let (mut blob, mut error) = (self.blob.clone(), None);
        match act {
            Some(Act::Refuse(error)) => return Err(OpenError::Origin(error)),
            Some(Act::Settings) => return Err(OpenError::Settings("no password".into())),
            Some(Act::Lie(other)) => blob = other,
            Some(Act::Cut(after)) => {
                let start = if self.no_parts { 0 } else { skip(part.from) };
                blob.truncate(start + after);
                error = ((start + after) < skip(end)).then(away);
            }
            None => {}
        }
        let from = skip(part.from).min(blob.len());
        // what a lie has behind the blob's end comes, too
        if end < part.size {
            blob.truncate(skip(end));
        }
        Ok(Given {
            rest: blob.slice(if self.no_parts { 0 } else { from }..),
            error,
            from_beginning: self.no_parts && (part.from..part.end) != (0..part.size),
            end,
            skip: if self.no_parts { from } else { 0 },
            received: 0,
            meanwhile: lock(&self.meanwhile).take(),
        })
    }

    fn name(&self, part: &Part<'_>, _access: &Access) -> String {
        format!("blob {}", part.blob)
    }
}

impl Pieces for Given {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if let Some((after, meanwhile)) = self.meanwhile.take() {
                if self.received >= after as u64 {
                    meanwhile();
                } else {
                    self.meanwhile = Some((after, meanwhile));
                }
            }
            if self.rest.is_empty() {
                return self.error.take().map_or(Ok(None), Err);
            }
            let mut piece = self.rest.split_to(PIECE.min(self.rest.len()));
            self.received += piece.len() as u64;
            let known = self.skip.min(piece.len());
            self.skip -= known;
            drop(piece.split_to(known));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    fn come_from_beginning(&self) -> bool {
        self.from_beginning
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn bytes_received(&self) -> u64 {
        self.received
    }
}

fn skip(from: u64) -> usize {
    usize::try_from(from).unwrap()
}

pub(super) fn away() -> OriginError {
    OriginError::Connection {
        what: "blob".into(),
        host: "registry".into(),
        cause: "gone".into(),
    }
}
