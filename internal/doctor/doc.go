// Package doctor owns the question whether a machine can hold N sessions, or
// open them as a load generator: it reads what the kernel tells of itself,
// compares it with what N needs, and says of each finding why it matters and
// how to set it. It imports nothing else of Perch.
//
// Everything is read through one fs.FS, the root of the file system, so that
// tests give a fake tree. Only Report.Write changes anything, below a
// directory that its caller names.
package doctor
