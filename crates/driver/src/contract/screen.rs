//! The screen: shown live, and as a picture.

use nephos_types::ServerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Bench, ok, refused};
use crate::{Console, Feature, StopMode};

/// How a server of the framebuffer protocol begins (RFC 6143, 7.1.1), and the version that it may be answered with.
const GREETING: &[u8] = b"RFB 003.008\n";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

pub(super) async fn a_running_guest_can_be_seen(bench: &Bench) {
    let driver = bench.driver().await;
    let nobody = ServerId::new();
    if !driver.capabilities().features.contains(&Feature::Display) {
        assert_eq!(refused("display", driver.display(nobody).await), "unsupported");
        assert_eq!(refused("screenshot", driver.screenshot(nobody).await), "unsupported");
        return;
    }
    assert_eq!(refused("display", driver.display(nobody).await), "guest_not_found");
    assert_eq!(refused("screenshot", driver.screenshot(nobody).await), "guest_not_found");
    let id = bench.started(&driver).await.id;
    let mut one = ok("display", driver.display(id).await);
    greeted(bench, &mut one).await;
    let mut two = ok("another display", driver.display(id).await);
    greeted(bench, &mut two).await;
    // The second asks to be alone, which sends the first not away.
    let (width, height) = size(bench, &mut two).await;
    assert!(width > 0 && height > 0);
    assert_eq!(size(bench, &mut one).await, (width, height));
    let picture = ok("screenshot", driver.screenshot(id).await);
    assert!(picture.starts_with(PNG) && picture.len() > 64, "a picture of {} bytes", picture.len());
    ok("stop", driver.stop(id, StopMode::Hard).await);
    let mut rest = vec![];
    let _ = bench.within("the display ends with the guest", one.read_to_end(&mut rest)).await;
    assert_eq!(refused("display", driver.display(id).await), "guest_not_running");
    assert_eq!(refused("screenshot", driver.screenshot(id).await), "guest_not_running");
    bench.removed(&driver, id).await;
}

async fn greeted(bench: &Bench, display: &mut Box<dyn Console>) {
    let mut greeting = vec![0; GREETING.len()];
    let read = bench.within("greeting", display.read_exact(&mut greeting)).await;
    assert!(read.is_ok() && greeting == GREETING, "{:?}", String::from_utf8_lossy(&greeting));
}

/// Goes through the opening of the protocol, asking to be alone, and returns what the server says of the screen.
async fn size(bench: &Bench, display: &mut Box<dyn Console>) -> (u16, u16) {
    let opening = async {
        display.write_all(GREETING).await?;
        let kinds = display.read_u8().await?;
        let mut offered = vec![0; usize::from(kinds)];
        display.read_exact(&mut offered).await?;
        assert!(offered.contains(&1), "without authentication, among {offered:?}");
        display.write_all(&[1]).await?;
        assert_eq!(display.read_u32().await?, 0, "let in");
        display.write_all(&[0]).await?;
        Ok::<_, std::io::Error>((display.read_u16().await?, display.read_u16().await?))
    };
    match bench.within("opening", opening).await {
        Ok(size) => size,
        Err(error) => panic!("the display ends: {error}"),
    }
}
