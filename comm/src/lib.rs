//! Process groups and collectives at the speed of memory, that never hang.
