//! Fleets of real programs on loopback: a coordinator, agents, and a registry that counts bytes and misbehaves.

mod apart;
mod bad_days;
mod bytes;
mod chaos;
mod demo;
mod docker;
mod first_day;
mod help;
mod hosts;
mod image;
mod made;
mod names;
mod old_images;
mod peers;
mod racks;
mod recipes;
mod releases;
mod rogues;
mod several;
mod stacked;
mod staging;
mod tarts_cache;
mod watched;
mod words;
