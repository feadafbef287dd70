//! A connection that asks the same over and over, as cheaply as can be, so that the server is what is measured.

use std::{io, time::Duration};

use nephos_testkit::CloudProcess;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::Outcome;

/// A connection that is kept open.
pub(crate) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects; each request will be a GET of this path.
    pub(crate) async fn open(cloud: &CloudProcess, path: &str, token: Option<&str>) -> Outcome<Self> {
        let url = cloud.url();
        let address = url.strip_prefix("http://").ok_or("the cloud is not reached by plain HTTP")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let credentials = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{credentials}\r\n").into_bytes();
        Ok(Self { stream, request, buffer: vec![0; 4 << 20] })
    }

    /// Asks once; returns the time until the whole answer was there, and its size.
    pub(crate) async fn ask(&mut self) -> Outcome<(Duration, usize)> {
        let begin = Instant::now();
        self.stream.write_all(&self.request).await?;
        let mut filled = 0;
        let mut whole = None;
        loop {
            let room = self.buffer.get_mut(filled..).filter(|room| !room.is_empty()).ok_or("the answer is too long")?;
            let count = self.stream.read(room).await?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            filled += count;
            if whole.is_none() {
                whole = whole_length(self.buffer.get(..filled).unwrap_or_default())?;
            }
            if whole.is_some_and(|whole| filled >= whole) {
                return Ok((begin.elapsed(), filled));
            }
        }
    }
}

/// The length of head and body, once the head is there; an error unless the answer is a success.
fn whole_length(answer: &[u8]) -> Outcome<Option<usize>> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(answer.get(..head).unwrap_or_default())?;
    let status = text.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(format!("the cloud answered `{status}`").into());
    }
    let length = text
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().to_owned()))
        .ok_or("the answer does not say how long it is")?;
    Ok(Some(head + 4 + length.parse::<usize>()?))
}
