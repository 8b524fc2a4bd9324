//! Staging: which hosts shall hold which images, and which host fetches which content from the registry.

pub mod action;
pub mod event;

pub use action::Action;
pub use event::Event;
