"""The parts of :func:`gammabeta.surgery.fold.fold`: regions, flow, pairs, weights, verification."""
