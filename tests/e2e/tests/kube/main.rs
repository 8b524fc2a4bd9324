//! parbake in a cluster: real programs on a real API server.
//!
//! Without `KUBEBUILDER_ASSETS` (a folder with kube-apiserver and etcd; `tests/kube/assets` prints one) every test here
//! is ignored, by name.

mod beside;
mod chart;
mod crd;
mod faults;
mod follow;
mod guard;
mod ha;
mod retention;
mod rights;
mod roll;
mod stage;
mod watched;
