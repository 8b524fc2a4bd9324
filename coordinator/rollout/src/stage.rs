//! Staging: which hosts shall hold which images, and which host fetches which content from the registry.

pub mod action;
pub mod config;
pub mod event;
mod plan;
pub mod sequence;
pub mod status;

pub use action::{Action, RecipeLeft, RecipeLoss, RevokeCause};
pub use config::Config;
pub use event::Event;
pub use plan::Plan;
pub use status::Status;
