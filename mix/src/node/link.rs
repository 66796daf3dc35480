//! The link identity of a node is renewed before it is a day old; connections under the old one go on (minion-spec 4.1).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::clock::World;
use crate::crypto::pk::PrivateKey;
use crate::directory::nickname::Nickname;
use crate::net::tls::{LINK_LIFETIME, LinkIdentity};

/// How often the age of the link identity is looked at.
const LINK_CHECK: Duration = Duration::from_secs(600);

/// Renews the link identity until stopped. The listener serves each new connection under the one that `renew` holds.
pub(super) async fn run(
    renew: watch::Sender<Arc<LinkIdentity>>,
    identity: PrivateKey,
    nickname: Nickname,
    world: World,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(LINK_CHECK)).await.is_some() {
        if !is_due(&renew.borrow(), &world) {
            continue;
        }
        let (identity, nickname, world) = (identity.clone(), nickname.clone(), world.clone());
        let made = tokio::task::spawn_blocking(move || {
            LinkIdentity::new(&identity, &nickname, world.now(), &mut world.dice())
        });
        match made.await {
            Ok(Ok(link)) => drop(renew.send_replace(Arc::new(link))),
            Ok(Err(e)) => error!(error = %e, "no new link key"),
            Err(e) => error!(panicked = e.is_panic(), "no new link key"),
        }
    }
}

/// At the first look that would be too late by the next. When the clock went back, too: peers may find that the
/// certificates begin later than now.
fn is_due(link: &LinkIdentity, world: &World) -> bool {
    let now = world.now();
    link.replace_at() <= now + LINK_CHECK || now + LINK_LIFETIME < link.replace_at()
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};
    use std::time::SystemTime;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::net::bandwidth::Metered;
    use crate::net::tls;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A clock that goes with tokio's, and can be set.
    fn world(offset: &Arc<Mutex<Duration>>) -> World {
        let (start, offset) = (Instant::now(), Arc::clone(offset));
        let now = move || {
            let offset = *offset.lock().unwrap_or_else(PoisonError::into_inner);
            SystemTime::UNIX_EPOCH + offset + start.elapsed()
        };
        World::new(now, || Box::new(StdRng::seed_from_u64(7)))
    }

    struct Renewed {
        link: watch::Receiver<Arc<LinkIdentity>>,
        offset: Arc<Mutex<Duration>>,
        world: World,
        identity: PrivateKey,
        stop: CancellationToken,
    }

    fn renewed() -> Renewed {
        let offset = Arc::new(Mutex::new(Duration::from_secs(1_795_395_600)));
        let world = world(&offset);
        let identity = PrivateKey::generate(2048, &mut world.dice()).unwrap();
        let nickname: Nickname = "Alice".parse().unwrap();
        let first = LinkIdentity::new(&identity, &nickname, world.now(), &mut world.dice()).unwrap();
        let (renew, link) = watch::channel(Arc::new(first));
        let stop = CancellationToken::new();
        tokio::spawn(run(renew, identity.clone(), nickname, world.clone(), stop.clone()));
        Renewed { link, offset, world, identity, stop }
    }

    #[tokio::test(start_paused = true)]
    async fn link_key_is_replaced_before_it_is_a_day_old_and_not_much_sooner() {
        let Renewed { mut link, stop, .. } = renewed();
        let started = Instant::now();
        link.borrow_and_update();
        for _ in 0..3 {
            let before = started.elapsed();
            link.changed().await.unwrap();
            link.borrow_and_update();
            let age = started.elapsed() - before;
            assert!(age <= 24 * HOUR && age > 23 * HOUR, "{age:?}");
        }
        stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn clock_that_goes_back_brings_a_new_link_key_that_is_valid_then() {
        let Renewed { mut link, offset, world, stop, .. } = renewed();
        link.borrow_and_update();
        *offset.lock().unwrap() -= 48 * HOUR;
        link.changed().await.unwrap();
        let renewed = Arc::clone(&link.borrow_and_update());
        assert!(renewed.replace_at() <= world.now() + LINK_LIFETIME);
        stop.cancel();
    }

    #[tokio::test]
    async fn connection_under_the_old_link_key_goes_on_when_there_is_a_new_one() {
        let Renewed { mut link, world, identity, stop, .. } = renewed();
        let old = Arc::clone(&link.borrow_and_update());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = identity.public_key().key_id();
        let accepted = async {
            let (stream, _) = listener.accept().await.unwrap();
            tls::accept(&old, Metered::new(stream, None)).await.unwrap()
        };
        let connected = async {
            let stream = Metered::new(TcpStream::connect(address).await.unwrap(), None);
            tls::connect(key, world.now(), stream).await.unwrap()
        };
        let (mut server, mut client) = tokio::join!(accepted, connected);
        tokio::time::pause();
        advance(24 * HOUR).await;
        link.changed().await.unwrap();
        tokio::time::resume();
        assert!(!Arc::ptr_eq(&old, &link.borrow()));
        drop(old);
        client.write_all(b"still here").await.unwrap();
        client.flush().await.unwrap();
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
        stop.cancel();
    }
}
