pub mod copy;
pub mod unary;
