//! What happens to servers by themselves at a time: a resize is confirmed, a server in the trash is deleted for good.
//!
//! Looked for in the records, so that nothing has to be remembered across restarts; several processes that look at once
//! meet in the store, and one of them does it.

use std::{sync::Arc, time::Duration};

use nephos_store::{Author, CommitError, Query, Record, Transaction};
use nephos_types::{Result, Timestamp, WorkflowId};

use super::{
    Server, actions,
    record::{BY_DEADLINE, Task},
    workflows::{DELETE, DeleteInput},
};
use crate::{
    compute::{Compute, Held},
    journal,
};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// Keeps deadlines as long as the family exists.
pub(crate) fn keep_deadlines(compute: &Arc<Compute>) {
    let held = Held::of(compute);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Ok(compute) = held.get() else { return };
            if let Err(error) = compute.meet_deadlines(Timestamp::now()).await {
                tracing::warn!(error = %error.chain(), "a deadline of a server could not be met; trying again");
            }
        }
    });
}

impl Compute {
    /// Does what is due at this time.
    pub(crate) async fn meet_deadlines(&self, now: Timestamp) -> Result<()> {
        for record in self.store.list::<Server>(&Query::all().index(BY_DEADLINE, "yes")).items {
            let due = record.body.deadline().is_some_and(|deadline| deadline <= now);
            if due && record.body.task.is_none() {
                self.meet_deadline(&record).await?;
            }
        }
        Ok(())
    }

    async fn meet_deadline(&self, record: &Record<Server>) -> Result<()> {
        let author = Author::new("deadline");
        let (transaction, workflow) = if record.body.trashed.is_some() {
            let (workflow, id) = (WorkflowId::new(), record.meta.id);
            let run = self
                .engine
                .prepare(DELETE, workflow, &DeleteInput { server: id, other: None })?
                .subject(id.to_string())
                .project(record.meta.project);
            let mut body = record.body.clone();
            body.task = Some(Task { name: "delete".to_owned(), workflow });
            let transaction = Transaction::new(author.operation("server.delete")).update(record, body);
            (journal::start(transaction, run), Some(workflow))
        } else {
            let transaction = Transaction::new(author.operation("server.confirm-resize"));
            (actions::confirmed(self, transaction, record)?, None)
        };
        match self.store.commit(transaction).await {
            Ok(_) => workflow.into_iter().for_each(|workflow| self.engine.kick(workflow)),
            // Somebody else does something to it; the next look sees what came of it.
            Err(CommitError::Conflict { .. } | CommitError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
