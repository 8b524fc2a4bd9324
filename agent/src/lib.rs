//! The parbake agent: driver, store, tart.
