//! What must survive: profiles, consents, contacts, settings, pushes, decisions.
