//! One message on a stream: its length in four bytes, the greatest first, then JSON.

use nephos_types::{Error, ErrorKind, Result};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message: the largest question or answer, as base64, with some room for the rest.
pub const MAX_FRAME: usize = 48 << 20;

/// Sends a message.
///
/// # Errors
/// Of kind `TooLarge` if it is longer than [`MAX_FRAME`], `Unavailable` if the stream breaks.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message).map_err(|error| Error::internal("A message cannot be written", error))?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length as usize <= MAX_FRAME).ok_or_else(too_large)?;
    let sent = async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&text).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| broken(&error))
}

/// Receives a message.
///
/// # Errors
/// Of kind `TooLarge` if it is longer than [`MAX_FRAME`], `Unavailable` if the stream ends before the message does,
/// `Invalid` if it is not what was expected.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T> {
    next(stream).await?.ok_or_else(|| broken(&std::io::ErrorKind::UnexpectedEof.into()))
}

/// Receives a message, or nothing if the stream has ended before it.
///
/// # Errors
/// As [`read`].
pub async fn next<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await.map_err(|error| broken(&error))? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await.map_err(|error| broken(&error))?;
    let length = u32::from_be_bytes(length);
    if length as usize > MAX_FRAME {
        return Err(too_large());
    }
    // Grows with what comes, not with what was announced.
    let mut text = vec![];
    let read = stream.take(length.into()).read_to_end(&mut text).await.map_err(|error| broken(&error))?;
    if read < length as usize {
        return Err(broken(&std::io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::invalid("invalid_message", "The message cannot be read").detail(error.to_string()))
}

fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, "too_large", "The message is too large")
        .detail(format!("at most {MAX_FRAME} bytes"))
}

fn broken(error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "stream_broke_off", "The stream broke off").detail(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_round_trip_and_broken_ones_are_refused() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let text = "x".repeat(1000);
        let (sent, received) = tokio::join!(write(&mut near, &text), read::<String>(&mut far));
        sent.unwrap();
        assert_eq!(received.unwrap(), text);

        near.write_all(&[0, 0, 0, 9, b'1']).await.unwrap();
        drop(near);
        assert_eq!(read::<u32>(&mut far).await.unwrap_err().code, "stream_broke_off");
        assert_eq!(read::<u32>(&mut &[255u8; 8][..]).await.unwrap_err().code, "too_large");
        assert_eq!(read::<u32>(&mut &[0, 0, 0, 2, b'{', b'}'][..]).await.unwrap_err().code, "invalid_message");
    }
}
