//! Names: who wants which image under which references, and what hosts were told of that and have confirmed.
//!
//! tart's cache has one link for a tag. So a reference names one image on a host: where two images are wanted under one
//! reference, the image that was asked for later has it ([`Claims`]).
//!
//! A tag moves away from an image and back within a second, and a host's reports about it are older than the orders
//! on their way to the host. So orders about names are numbered, a host repeats the newest number after which it
//! looked at its disk, and what it said before isn't believed of a name that was asked for, or moved, since
//! ([`Told`]).

mod claims;
mod told;

pub use claims::{Claim, Claimed, Claims, NotAsked, Placement, Wanted};
pub use told::{Told, UNCONFIRMED_AFTER};
