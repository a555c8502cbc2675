//! To the orchestrator: spool, acknowledge, receive settings.
