//! Decides: the handlers of the operations, the workflows, the reconcilers, the scheduler.
