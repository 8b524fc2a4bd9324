//! The most entries of the lists in a report: an agent says no more, and the coordinator reads no more. What doesn't
//! fit into one report follows in the next one.
//!
//! The limits of whole messages stand in [`codec`](crate::codec), those of images in [`image`](crate::image) and
//! [`chunks`](crate::chunks).

/// Images of one host. The coordinator wants at most 64 at one time; the others were wanted before.
pub const MAX_IMAGES: usize = 256;
/// Leases that ended since the last report. Those that run come on top.
pub const MAX_ENDED_LEASES: usize = 64;
/// Contents of which the host takes back what it made.
pub const MAX_RETRACTIONS: usize = 64;
/// Contents whose recipe doesn't fit the registry's bytes.
pub const MAX_RECIPE_DOUBTS: usize = 16;
/// Accusations. An agent keeps that many while it has no session.
pub const MAX_BLAMES: usize = 256;
/// Blobs that clients of the host's mirror wait for. A blob beyond is fetched without a lease if nothing of it comes.
pub const MAX_MIRROR_WANTS: usize = 64;
/// Contents for which the host finds no source: the first ones, which are leased first.
pub const MAX_WITHOUT_SOURCE: usize = 16;
/// Contents of which the report says how much the host holds.
pub const MAX_HELD: usize = 256;
/// Old images of which the answer to a question says what becomes of them. Of more the answer says their number.
pub const MAX_OLD_IMAGES: usize = 32;
/// References that the answer says of each of these.
pub const MAX_OLD_REFERENCES: usize = 2;
