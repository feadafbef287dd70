//! Durable workflow steps on the real store, each step its own acknowledged commit.

use std::time::Duration;

use crate::{Outcome, figure::Figure};

const AT_ONCE: usize = 64;
const SPAN: Duration = Duration::from_secs(5);

pub(crate) async fn run() -> Outcome {
    let folder = tempfile::tempdir()?;
    let figure = nephos_cloud::bench::workflow_steps(folder.path(), AT_ONCE, SPAN).await?;
    Ok(vec![Figure::amount("durable workflow steps, 64 workflows at once", figure.per_second(), "/s").over(5000.0)])
}
