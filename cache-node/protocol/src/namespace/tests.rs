use super::*;

fn parts() -> NamespaceParts<'static> {
    NamespaceParts {
        weights: &[1; 32],
        epoch: 0,
        layout: &[2; 32],
        hash: "sha256_cbor",
        dtype: "float32",
        tokens_per_block: 32,
        blocks_per_chunk: 2,
        part_bytes: 131_072,
        world: 1,
    }
}

#[test]
fn golden() {
    assert_eq!(parts().digest().to_string(), "00a873c6b126dfb7cad64ec2e995c65d");
}

#[test]
fn every_part_tells_namespaces_apart() {
    let base = parts().digest();
    let others = [
        NamespaceParts { weights: &[3; 32], ..parts() },
        NamespaceParts { epoch: 1, ..parts() },
        NamespaceParts { layout: &[3; 32], ..parts() },
        NamespaceParts { hash: "sha256", ..parts() },
        NamespaceParts { dtype: "bfloat16", ..parts() },
        NamespaceParts { tokens_per_block: 16, ..parts() },
        NamespaceParts { blocks_per_chunk: 4, ..parts() },
        NamespaceParts { part_bytes: 65_536, ..parts() },
        NamespaceParts { world: 2, ..parts() },
    ];
    for other in &others {
        assert_ne!(other.digest(), base, "{other:?}");
    }
}

/// Lengths are part of the encoding: moving a byte from one field to the next gives another namespace.
#[test]
fn fields_do_not_run_into_each_other() {
    let one = NamespaceParts { hash: "ab", dtype: "c", ..parts() }.digest();
    let two = NamespaceParts { hash: "a", dtype: "bc", ..parts() }.digest();
    assert_ne!(one, two);
}
