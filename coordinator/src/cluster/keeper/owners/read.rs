//! Reads from the API server which Pods an owner makes.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::{PodTemplateSpec, ReplicationController},
    },
};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Makes, OwnerError, OwnerKey};
use crate::cluster::{index::Owner, trouble};

/// The API server answers for one owner within this time, including the Deployment above a ReplicaSet.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the image of an owner's template. For a ReplicaSet of a Deployment, the Deployment's template counts, because
/// the Deployment replaces its ReplicaSets.
///
/// # Errors
/// The API server refuses, doesn't answer in time, or has no such owner, or the owner's template names no image.
pub(in crate::cluster::keeper) async fn read(
    client: Client,
    key: &OwnerKey,
) -> Result<Makes, OwnerError> {
    let read = timeout(TIMEOUT, read_template(&client, key)).await;
    read.unwrap_or_else(|_| {
        Err(OwnerError::Failed {
            owner: key.owner.clone(),
            error: "the API server doesn't answer in time".into(),
        })
    })
}

async fn read_template(client: &Client, key: &OwnerKey) -> Result<Makes, OwnerError> {
    let owner = &key.owner;
    let template = match owner.kind.as_str() {
        "ReplicaSet" => {
            let found: ReplicaSet = get(client, &key.namespace, owner).await?;
            let above = Owner::of(&found.metadata).filter(|above| {
                above.kind == "Deployment" && above.api_version.starts_with("apps/")
            });
            if let Some(above) = above {
                let found: Deployment = get(client, &key.namespace, &above).await?;
                let template = found.spec.map(|spec| spec.template);
                return makes(&above, template);
            }
            found.spec.and_then(|spec| spec.template)
        }
        "StatefulSet" => {
            let found: StatefulSet = get(client, &key.namespace, owner).await?;
            found.spec.map(|spec| spec.template)
        }
        "DaemonSet" => {
            let found: DaemonSet = get(client, &key.namespace, owner).await?;
            found.spec.map(|spec| spec.template)
        }
        _ => {
            let found: ReplicationController = get(client, &key.namespace, owner).await?;
            found.spec.and_then(|spec| spec.template)
        }
    };
    makes(owner, template)
}

fn makes(owner: &Owner, template: Option<PodTemplateSpec>) -> Result<Makes, OwnerError> {
    let image = template
        .and_then(|template| template.spec)
        .and_then(|spec| spec.containers.into_iter().next()?.image);
    let image = image.ok_or_else(|| OwnerError::Failed {
        owner: owner.clone(),
        error: "its template names no image".into(),
    })?;
    Ok(Makes {
        by: owner.to_string(),
        image,
    })
}

async fn get<K>(client: &Client, namespace: &str, owner: &Owner) -> Result<K, OwnerError>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get_opt(&owner.name).await {
        Ok(Some(found)) if found.meta().uid.as_ref() == Some(&owner.uid) => Ok(found),
        Ok(_) => Err(OwnerError::Gone(owner.clone())),
        Err(error) => {
            let owner = owner.clone();
            let denied =
                matches!(&error, kube::Error::Api(status) if [401, 403].contains(&status.code));
            let error = trouble::plain(&error);
            Err(match denied {
                true => OwnerError::Denied { owner, error },
                false => OwnerError::Failed { owner, error },
            })
        }
    }
}
