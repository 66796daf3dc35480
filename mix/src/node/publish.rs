//! Tells the directory server about this node, again and again until it listens.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::network::describe;
use crate::directory::Descriptor;
use crate::net::fetch::{self, Uploaded};

/// How often the descriptor is uploaded again once it was taken: a directory server may have lost it.
const AGAIN: Duration = Duration::from_secs(12 * 3600);

/// Uploads `descriptor` to the directory server whose base is `url` until stopped; a failure is tried again after `retry`.
pub(super) async fn run(descriptor: Arc<Descriptor>, url: String, retry: Duration, stop: CancellationToken) {
    let upload = format!("{url}upload");
    let mut failing = false;
    let mut published = false;
    loop {
        let wait = match fetch::upload_descriptor(&upload, descriptor.text()).await {
            Ok(uploaded) => {
                if !std::mem::replace(&mut published, true) || failing {
                    match uploaded {
                        Uploaded::Accepted => info!("the directory server lists this node"),
                        Uploaded::Waiting { message } => info!(message, "the directory server has the descriptor"),
                    }
                }
                failing = false;
                AGAIN
            }
            Err(e) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(error = %describe(&e), "the directory server did not take the descriptor");
                }
                retry
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}
