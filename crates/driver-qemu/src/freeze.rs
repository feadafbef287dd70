//! A guest's file systems held still by its agent for the moment of a snapshot.
//!
//! Invariant: what is held is let go again: it is written down before it is held, so that an agent that ended in
//! between is made up for when the guest is [adopted](crate::adopt).

use std::time::Duration;

use nephos_driver::Power;
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    agent::{ANSWER_LIMIT, Agent, AgentError},
    copy::Moment,
    guest::Guest,
    machine::Machine,
};

/// How often letting go is tried, and the time in between.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_secs(1);

/// Holds a guest's file systems still, if that is wanted and somebody in the guest can.
pub(crate) struct Freezer<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) machine: &'a Machine,
    pub(crate) wanted: bool,
}

impl Moment for Freezer<'_> {
    async fn hold(&self) -> bool {
        if !self.wanted || self.guest.power() != Some(Power::On) || !self.machine.agent_listens().await {
            return false;
        }
        if let Err(error) = self.guest.set(|record| record.frozen = true) {
            tracing::warn!(id = %self.guest.id, %error, "a guest's file systems are not held still");
            return false;
        }
        match freeze(&self.machine.agent).await {
            Ok(1..) => true,
            other => {
                if let Err(error) = other {
                    tracing::info!(id = %self.guest.id, %error, "a guest's file systems cannot be held still");
                }
                self.release().await;
                false
            }
        }
    }

    async fn release(&self) {
        thaw(self.guest, &self.machine.agent).await;
    }
}

async fn freeze(agent: &Agent) -> Result<u64, AgentError> {
    let held = agent.talk().await?.run("guest-fsfreeze-freeze", Value::Null, ANSWER_LIMIT).await?;
    Ok(held.as_u64().unwrap_or(0))
}

/// Lets a guest's file systems go.
pub(crate) async fn thaw(guest: &Guest, agent: &Agent) {
    for _ in 0..TRIES {
        let thawed = async { agent.talk().await?.run("guest-fsfreeze-thaw", Value::Null, ANSWER_LIMIT).await };
        match thawed.await {
            Ok(_) => {
                if let Err(error) = guest.set(|record| record.frozen = false) {
                    tracing::warn!(id = %guest.id, %error, "a server's record cannot be written");
                }
                return;
            }
            Err(error) => {
                tracing::warn!(id = %guest.id, %error, "a guest's file systems are still held");
                // It has ended meanwhile.
                if guest.machine().is_none() {
                    return;
                }
                sleep(BETWEEN).await;
            }
        }
    }
}
