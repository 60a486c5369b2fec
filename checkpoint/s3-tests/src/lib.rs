//! Only tests: the checkpoints' commit protocol against an S3 in the same process. A package of its own, because an S3
//! takes longer to build than everything else that the checkpoints need.
