//! Objects of the cluster that tests make up.

use serde_json::{Value, json};

/// An `ImagePrePull` of this image for the Nodes with `a=b`, in the namespace `ns`. `more` has further fields, by the
/// part of the object that they belong to.
pub(crate) fn prepull(name: &str, image: &str, more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "parbake.dev/v1alpha1",
        "kind": "ImagePrePull",
        "metadata": { "name": name, "namespace": "ns", "uid": name },
        "spec": { "image": image, "nodeSelector": { "matchLabels": { "a": "b" } } },
    });
    for (part, fields) in more.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            object[part][field] = value.clone();
        }
    }
    object
}
