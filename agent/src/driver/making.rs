//! Makes the recipe of an image that is whole on this host, beside all other work.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc, time::Instant};

use proto::{ChunkIndex, HostId, Link, Source, State, image};
use tokio::task::spawn_blocking;
use tracing::info;

use super::recipe_files::RecipeFiles;
use crate::{
    mirror::blob::Blob,
    store::{
        Stage, Store,
        making::{MakeRecipeError, Making},
    },
};

/// Chunks that are read at a time, before the job rests for as long as they took: some 20 ms on a Mac.
const STEP: usize = 16;

/// Makes the recipe, keeps it where recipes lie, and notes it with the image. Rests for half of the time. When this is
/// dropped, nothing of the recipe stays.
///
/// # Errors
/// When the image isn't whole any more, or the volume fails.
pub(super) async fn make(
    store: Arc<Store>,
    stage: Arc<Stage>,
    files: Arc<RecipeFiles>,
) -> Result<Arc<Blob>, MakeRecipeError> {
    let (of, at, start) = (stage.clone(), files.clone(), Instant::now());
    let mut making = blocking(move || Ok(Making::begin(of, at.home())?)).await?;
    loop {
        let began = Instant::now();
        let (file, going) = blocking(move || {
            let file = making.go_on(STEP)?;
            Ok((file, making))
        })
        .await?;
        making = going;
        let Some(file) = file else {
            tokio::time::sleep(began.elapsed()).await;
            continue;
        };
        return blocking(move || {
            let blob = keep(&making, file, &files, &store.host())?;
            store.keep_recipe(&stage, file)?;
            stage.standing().prove(file.digest);
            let elapsed_ms = proto::millis(start.elapsed());
            info!(image = %stage.layout().digest(), recipe = %file.digest, bytes = file.size, elapsed_ms, "the image's recipe is made");
            Ok(blob)
        })
        .await;
    }
}

/// Runs a part of the job on a thread that may block.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, MakeRecipeError> + Send + 'static,
) -> Result<T, MakeRecipeError> {
    match spawn_blocking(run).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(io::Error::other(error).into()),
        },
    }
}

/// Brings the recipe's bytes to the place from which peers get them, with their links.
fn keep(
    making: &Making,
    file: image::Blob,
    files: &RecipeFiles,
    me: &HostId,
) -> io::Result<Arc<Blob>> {
    let blob = files.open(file, me)?;
    let geometry = blob.geometry();
    let written = File::open(making.path())?;
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    let mut state = State::INITIAL;
    for chunk in (0..geometry.chunks()).map(ChunkIndex) {
        let mut bytes = vec![0; geometry.len(chunk) as usize];
        written.read_exact_at(&mut bytes, geometry.offset(chunk))?;
        let link = Link::forge(geometry, chunk, state, &bytes);
        state = link.after;
        blob.write(chunk, &bytes, link, source, (me, None))
            .map_err(io::Error::other)?;
    }
    blob.walk()?;
    match blob.is_whole() {
        true => Ok(blob),
        false => Err(io::Error::other("its file changed while it was kept")),
    }
}
