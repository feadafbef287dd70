//! Reading one resource over REST on sixteen connections. The load is made on the same machine and takes its share.

use std::time::Duration;

use nephos_testkit::CloudProcess;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    Outcome,
    connection::Connection,
    figure::{Figure, percentile},
    nephos, settings,
};

const CONNECTIONS: usize = 16;
const WARM_UP: Duration = Duration::from_secs(1);
const SPAN: Duration = Duration::from_secs(5);

pub(crate) async fn run() -> Outcome {
    let cloud = CloudProcess::start(nephos()?, settings(1)).await;
    let token = cloud.demo_token().await;
    let mut readers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(&cloud, "/v1/flavors/tiny", Some(&token)).await?;
        readers.spawn(async move {
            let mut times = vec![];
            let begin = Instant::now();
            while begin.elapsed() < WARM_UP + SPAN {
                let (time, _) = connection.ask().await?;
                if begin.elapsed() > WARM_UP {
                    times.push(time);
                }
            }
            Outcome::Ok(times)
        });
    }
    let mut times = vec![];
    while let Some(reader) = readers.join_next().await {
        times.extend(reader??);
    }
    let per_second = times.len() as f64 / SPAN.as_secs_f64();
    Ok(vec![
        Figure::amount("read one resource over REST, 16 connections", per_second, "/s").over(20_000.0),
        Figure::time("  p99", percentile(&mut times, 0.99)).under(5.0),
    ])
}
