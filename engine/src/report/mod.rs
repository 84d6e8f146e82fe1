//! Showing a run: metrics, TensorBoard, one page.
