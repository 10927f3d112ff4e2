package auth

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// File names in the data directory.
const (
	signingKeyFile = "signing-key.pem"
	apiKeyFile     = "api_key"
	logFile        = "auth.log"
	lockFile       = "auth.lock"
)

// makeDir makes dir for its owner alone. One that exists stays as it is: its
// files are 0600 whatever it allows.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("auth: make data directory: %w", err)
	}
	return nil
}

// writeTemp writes data to a new file beside path, synced, 0600, and returns
// its name.
func writeTemp(path string, data []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp") // made 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}

// createFile makes path with data, whole or not at all, and never over a file
// that is there: of two processes that start together one wins, and fs.ErrExist
// tells the other to read what the winner wrote.
func createFile(path string, data []byte) error {
	tmp, err := writeTemp(path, data)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	err = os.Link(tmp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without hard links.
		if _, e := os.Lstat(path); e == nil {
			return fs.ErrExist
		}
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// loadOrCreate returns the content of dir/name, which make provides where there
// is no such file yet.
func loadOrCreate(dir, name string, content func() ([]byte, error)) ([]byte, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if data, err = content(); err != nil {
		return nil, err
	}
	if err = createFile(path, data); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	}
	return data, err
}

// randomText is n random bytes in base64url.
func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: the process ends instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// LoadOrCreateAPIKey returns the key of the server API that stands in dir, and
// makes it (256 random bits, in base64url, file mode 0600) where there is none.
func LoadOrCreateAPIKey(dir string) (string, error) {
	data, err := loadOrCreate(dir, apiKeyFile, func() ([]byte, error) {
		return []byte(randomText(32) + "\n"), nil
	})
	if err != nil {
		return "", fmt.Errorf("auth: api key: %w", err)
	}
	key := strings.TrimSpace(string(data))
	if key == "" {
		return "", fmt.Errorf("auth: api key: %s is empty", filepath.Join(dir, apiKeyFile))
	}
	return key, nil
}
