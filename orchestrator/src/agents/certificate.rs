//! The name of an agent: the DNS names of the certificate it came with (RFC 5280 section 4.2.1.6).

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The DNS names in the end-entity certificate `der`, which the TLS layer has verified. `None`: it cannot be parsed.
pub(super) fn dns_names(der: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    let names = names.map(|extension| &extension.value.general_names);
    Some(
        names
            .into_iter()
            .flatten()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pki;

    #[test]
    fn the_name_is_the_one_the_certificate_was_made_for() {
        let dir = tempfile::tempdir().unwrap();
        pki::init(dir.path(), &["127.0.0.1".to_owned()], &[]).unwrap();
        let pair = pki::agent(dir.path(), "gw1").unwrap();
        let pem = std::fs::read(pair.certificate).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        assert_eq!(dns_names(&pem.contents), Some(vec!["gw1".to_owned()]));
    }

    proptest! {
        #[test]
        fn foreign_bytes_have_no_name(der in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(dns_names(&der), None);
        }
    }
}
