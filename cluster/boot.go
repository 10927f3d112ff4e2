package cluster

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A machine that stops without warning loses what was not forced to the disk,
// though it may have been delivered. Beside the streams stands in which run of the
// machine they were open, and whether they were closed.
const (
	bootFile   = "boot"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	bootClosed = "closed"
)

// bootID names this run of the machine; empty where it can't be read.
func bootID() string {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// opened notes that the streams in dir are open, and tells whether the machine has
// stopped since they were, without their having been closed.
func opened(dir, id string) (unclean bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil && !os.IsNotExist(err) {
		return false, err
	}
	before := strings.TrimSpace(string(b))
	unclean = before != "" && before != id && before != bootClosed
	return unclean, noteBoot(dir, id)
}

// closed notes that everything is on the disk.
func closed(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	if e := d.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return noteBoot(dir, bootClosed)
}

func noteBoot(dir, text string) error {
	name := filepath.Join(dir, bootFile)
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text + "\n")
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
