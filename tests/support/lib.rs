//! What the end-to-end tests and the demo share: namespaces, real servers and clients, the daemons, and the demo's story.
//!
//! Nothing here stands in for a part of Usher. It starts what an operator would start, looks where an operator would
//! look, and removes what it made.

pub mod exactness;
pub mod floods;
pub mod frames;
pub mod netconfd;
pub mod netns;
pub mod nginx;
pub mod packets;
pub mod pins;
pub mod player;
pub mod process;
pub mod record;
pub mod relay;
pub mod report;
pub mod scenario;
pub mod site;
pub mod skip;
pub mod stage;
pub mod views;
pub mod wait;
