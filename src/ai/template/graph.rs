//! The graph of steps: what comes before what.

use std::collections::BTreeSet;

/// For each step all steps that come before it.
///
/// # Errors
/// The steps of a circle, in its order.
pub(super) fn ancestors(needs: &[Vec<usize>]) -> Result<Vec<BTreeSet<usize>>, Vec<usize>> {
    let mut found: Vec<Option<BTreeSet<usize>>> = vec![None; needs.len()];
    for step in 0..needs.len() {
        let mut path = Vec::new();
        visit(step, needs, &mut found, &mut path)?;
    }
    Ok(found.into_iter().map(Option::unwrap_or_default).collect())
}

fn visit(
    step: usize,
    needs: &[Vec<usize>],
    found: &mut [Option<BTreeSet<usize>>],
    path: &mut Vec<usize>,
) -> Result<(), Vec<usize>> {
    if let Some(at) = path.iter().position(|other| *other == step) {
        return Err(path[at..].to_vec());
    }
    if found[step].is_some() {
        return Ok(());
    }
    path.push(step);
    let mut before = BTreeSet::new();
    for &need in &needs[step] {
        visit(need, needs, found, path)?;
        before.insert(need);
        before.extend(found[need].iter().flatten());
    }
    path.pop();
    found[step] = Some(before);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_is_known_and_circles_are_found() {
        let before = ancestors(&[vec![], vec![0], vec![0], vec![1, 2]]).unwrap();
        assert_eq!(before[3], BTreeSet::from([0, 1, 2]));
        assert_eq!(before[2], BTreeSet::from([0]));
        assert_eq!(ancestors(&[vec![2], vec![0], vec![1]]).unwrap_err().len(), 3);
        assert_eq!(ancestors(&[vec![], vec![1]]).unwrap_err(), vec![1]);
    }
}
