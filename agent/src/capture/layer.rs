//! What was taken off a frame before its innermost packet.

use std::fmt;

use super::frame::Refused;

/// Most tags and tunnels taken off a frame.
pub const MAX_LAYERS: usize = 12;

/// One tag or tunnel around a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A VLAN id.
    Vlan(u16),
    /// An MPLS label.
    Mpls(u32),
    /// A PPPoE session id.
    Pppoe(u16),
    /// IP in IP, any versions.
    IpIp,
    /// GRE.
    Gre,
    /// A GTP-U tunnel endpoint id.
    Gtpu(u32),
    /// A VXLAN network id.
    Vxlan(u32),
    /// Teredo.
    Teredo,
    /// CAPWAP.
    Capwap,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan(id) => write!(f, "vlan:{id}"),
            Self::Mpls(label) => write!(f, "mpls:{label}"),
            Self::Pppoe(session) => write!(f, "pppoe:{session}"),
            Self::IpIp => f.write_str("ipip"),
            Self::Gre => f.write_str("gre"),
            Self::Gtpu(teid) => write!(f, "gtpu:{teid}"),
            Self::Vxlan(vni) => write!(f, "vxlan:{vni}"),
            Self::Teredo => f.write_str("teredo"),
            Self::Capwap => f.write_str("capwap"),
        }
    }
}

/// Tags and tunnels, outermost first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layers {
    list: [Option<Layer>; MAX_LAYERS],
}

impl Layers {
    /// Outermost first.
    pub fn iter(&self) -> impl Iterator<Item = Layer> + '_ {
        self.list.iter().map_while(|layer| *layer)
    }

    pub(super) fn push(&mut self, layer: Layer) -> Result<(), Refused> {
        let free = self.list.iter_mut().find(|layer| layer.is_none()).ok_or(Refused::TooDeep)?;
        *free = Some(layer);
        Ok(())
    }
}
