package etcdtest

import (
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// RestoreBumped is Restore as etcd's guide advises it: etcdutl snapshot restore --bump-revision by --mark-compacted. The
// etcd that starts then has forgotten all since Snapshot, but its revision does not go back, where by is more than what was
// written since, and all watches from before are told that it is compacted.
func (m *member) RestoreBumped(by uint64) {
	m.t.Helper()
	m.alone("RestoreBumped")
	if m.saved == "" {
		m.t.Fatal("etcdtest: RestoreBumped without Snapshot")
	}
	m.Stop()
	err := os.RemoveAll(m.cfg.Dir)
	if err == nil {
		err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
			SnapshotPath:        filepath.Join(m.saved, "member", "snap", "db"),
			Name:                m.cfg.Name,
			OutputDataDir:       m.cfg.Dir,
			PeerURLs:            []string{m.cfg.peerURL()},
			InitialCluster:      m.cfg.Cluster,
			InitialClusterToken: clusterToken,
			SkipHashCheck:       true, // it is a copy of the file, not one that etcd has made
			RevisionBump:        by,
			MarkCompacted:       true,
		})
	}
	if err != nil {
		m.t.Fatalf("etcdtest: restore with a later revision: %v", err)
	}
	m.restores.Add(1)
	m.Start()
}
