//! Names: who wants which image under which references, what each host was told of that, and what it has confirmed.
//!
//! tart's cache has one link for each tag, so a reference names one image on a host. Where two images are wanted under
//! one reference, the image that was asked for later gets the reference ([`Claims`]).
//!
//! A tag may move away from an image and back within a second, while the host's reports are older than the orders on
//! their way to the host. So orders about names have numbers. Before a host looks at its disk, it takes the number of
//! the newest order; its report repeats that number. A report isn't believed about a name that was asked for, or moved,
//! after the order with the repeated number ([`Told`]).

mod claims;
mod told;

pub use claims::{Claim, Claimed, Claims, NotAsked, Placement, Wanted};
pub use told::{Told, UNCONFIRMED_AFTER};
