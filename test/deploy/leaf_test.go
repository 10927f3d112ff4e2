package deploy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// certificate makes a self-signed one for 127.0.0.1, which is its own authority.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	pkcs8, e := x509.MarshalPKCS8PrivateKey(private)
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// TestLeafRuns starts the hub and the site by their files: the site joins the
// hub over TLS, in the account of the hub's own nodes. One with another password
// does not, and serves all the same.
func TestLeafRuns(t *testing.T) {
	cert, key := certificate(t)
	env := environment{"BERLIN_PASSWORD": `"` + secret("berlin") + `"`, "NATS_PASSWORD": `"` + secret("nats") + `"`}
	hub := natsServers(t, natsOptions(t, replaced(t, deployed(t, "leaf", "nats.conf"), map[string]string{
		"/etc/nats/hub.crt": cert, "/etc/nats/hub.key": key,
	}), env))
	at := hub[0].Addr().(*net.TCPAddr)
	if varz, err := hub[0].Varz(nil); err != nil {
		t.Fatal(err)
	} else {
		at = &net.TCPAddr{IP: at.IP, Port: varz.LeafNode.Port}
	}
	start := func(password string) *node {
		t.Helper()
		env := environment{
			"PERCH_CONFIG":           absolute(t, root, "deploy", "leaf", "perch.yaml"),
			"PERCH_NATS_LEAF_URL":    "tls://berlin:" + password + "@" + at.String(),
			"PERCH_NATS_STORE_BYTES": "1GiB",
			"PERCH_NATS_LEAF_TLS_CA": cert,
		}
		checkConfig(t, env)
		n := serve(t, env)
		n.answers(t, "/readyz")
		return n
	}
	start(secret("somebody"))
	n := start(secret("berlin"))
	await(t, "the site joins the hub", func() bool { return len(leaves(t, hub[0])) > 0 }, n.said)
	if got := leaves(t, hub[0]); len(got) != 1 || got[0].Account != "PERCH" {
		t.Errorf("the hub has the leaves %v", got)
	}
	if info, err := os.Stat(filepath.Join(n.env["PERCH_DATA_DIR"], "nats", "jetstream")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("where the site stores: %v %v", info, err)
	}
}

// leaves are those that a server has.
func leaves(t *testing.T, s *server.Server) []*server.LeafInfo {
	t.Helper()
	_, body := get("http://" + s.MonitorAddr().String() + "/leafz")
	var list server.Leafz
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	return list.Leafs
}
